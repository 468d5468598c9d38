"""From documents to the sampler's requests, and from its ids back to text and pictures."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from jaxtyping import Int
from PIL import Image
from torch import Tensor

from anymodal.configuration import from_dict
from anymodal.data.fitting import fitted_size
from anymodal.data.pictures import to_image, to_pixels
from anymodal.decoding.config import GenerationConfig, Options, SamplingConfig, Want
from anymodal.decoding.request import Guides, Request
from anymodal.model.folder import ModelFolder
from anymodal.tokens.document import Codes, Document, Draw, Look, Part, TokenSequence, Turn
from anymodal.tokens.grammar import Grammar, compile_grammar, spell_sizes


class Prompter:
    """Ask the sampler of one model, and read what it wrote."""

    def __init__(self, parts: ModelFolder) -> None:
        """Speak for the model in `parts`."""
        self.parts, self.model = parts, parts.model
        self.vocabulary, self.text_tokenizer = parts.model.vocabulary, parts.text_tokenizer
        self.image_tokenizer, self.encoder = parts.image_tokenizer, parts.encoder()
        self.generation = from_dict(GenerationConfig, parts.generation, "generation_config.json")
        self._grammars: dict[tuple[Want, tuple[int, int] | None], Grammar] = {}

    def grammar(self, want: Want, size: tuple[int, int] | None = None) -> Grammar:
        """Return what may be written; pictures of `size` alone where the layout has several."""
        key = (want, size if self.parts.layout.kind == "rows" else None)
        if key not in self._grammars:
            self._grammars[key] = compile_grammar(
                self.vocabulary, self.parts.layout, want, text_tokenizer=self.text_tokenizer, size=key[1]
            )
        return self._grammars[key]

    def must_decode(self) -> None:
        """See that what is drawn can be shown.

        Raises:
            ValueError: the model has no decoder for pictures.
        """
        if not self.image_tokenizer.config.has_decoder:
            raise ValueError(
                "this model has no decoder for pictures, so what it draws could not be shown; put the decoder's file "
                "into its folder (docs/published.md tells which)."
            )

    def request(self, document: Document, options: Options) -> Request:
        """Ask for what follows a document.

        Raises:
            ValueError: the model cannot draw, or not this size, or something else is wanted than text or a picture.
        """
        drawing, writing = (changed(each, options) for each in (self.generation.image, self.generation.text))
        want, seed = options.get("want", "any"), options.get("seed", 0)
        if want not in get_args(Want):
            raise ValueError(f"want must be one of {', '.join(get_args(Want))}, got {want!r}.")
        budget = self.budget(options.get("max_new_tokens"))
        resolved = self.resolve(document)
        if want == "text":
            return self.text_request(resolved, writing, budget, seed)
        if want == "any":
            return self.any_request(resolved, drawing, writing, (budget, options.get("max_images", 4)), seed)
        self.must_decode()
        height, width = options.get("height"), options.get("width")
        grid = self.grid(height, width) if height or width else None
        return self.image_request(resolved, options.get("negative_prompt"), drawing, grid, seed)

    def image_request(
        self, document: Document, negative: str | None, sampling: SamplingConfig, grid: tuple[int, int] | None,
        seed: int,
    ) -> Request:  # fmt: skip
        """Ask for one picture of `grid` codes, or of a size that the model chooses."""
        size = grid if self.parts.layout.kind == "rows" else None
        prompt = self.encoder.prompt_image(document, size=size)
        return Request(
            prompt=prompt,
            unconditional=self._unconditional(prompt, negative, size),
            pictures=self.encoder.pictures_alone(prompt),
            grammar=self.grammar("image", size),
            image=sampling,
            seed=seed,
        )

    def budget(self, max_new_tokens: int | None) -> int:
        """Return the most ids of text, the folder's where none is given.

        Raises:
            ValueError: it is below 1.
        """
        found = self.generation.max_new_tokens if max_new_tokens is None else max_new_tokens
        if found < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {found}; leave it out for the model's own.")
        return found

    def text_request(self, document: Document, sampling: SamplingConfig, max_new_tokens: int, seed: int) -> Request:
        """Ask for text."""
        prompt = self.encoder.encode(document, complete=False)
        return Request(
            prompt=prompt, grammar=self.grammar("text"), text=sampling, seed=seed, max_new_tokens=max_new_tokens
        )

    def any_request(
        self, document: Document, drawing: SamplingConfig, writing: SamplingConfig, limits: tuple[int, int], seed: int
    ) -> Request:
        """Ask for text and pictures as the model likes; `limits` are the most ids of text and the most pictures."""
        return Request(
            prompt=self.encoder.encode(document, complete=False),
            grammar=self.grammar("any"),
            guides=lambda sequence: Guides(
                self._unconditional(sequence, None, None), self.encoder.pictures_alone(sequence)
            ),
            image=drawing,
            text=writing,
            seed=seed,
            max_new_tokens=limits[0],
            max_images=limits[1] if self.image_tokenizer.config.has_decoder else 0,
            picture_tokens=int(self.grammar("image").steps_left[self.grammar("image").start]),
        )

    def _unconditional(
        self, prompt: TokenSequence, negative: str | None, size: tuple[int, int] | None
    ) -> TokenSequence:
        if negative is None and self.parts.template.unconditional != "empty":
            return self.encoder.unconditional(prompt)
        return self.encoder.prompt_image([negative or ""], size=size)

    def grid(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Turn a size in pixels into a grid of codes; None is the model's first size.

        Raises:
            ValueError: the model cannot draw this size.
        """
        factor = self.image_tokenizer.config.down_sampling
        rows, columns = self.parts.layout.sizes[0]
        wanted = (height or rows * factor, width or columns * factor)
        grid = (wanted[0] // factor, wanted[1] // factor)
        if wanted != (grid[0] * factor, grid[1] * factor) or grid not in self.parts.layout.sizes:
            sizes = spell_sizes([(a * factor, b * factor) for a, b in self.parts.layout.sizes], by=" x ")
            raise ValueError(
                f"this model draws pictures of {sizes} pixels (height x width), not {wanted[0]} x {wanted[1]}."
            )
        return grid

    def codes_of(self, ids: Int[Tensor, " n"]) -> Int[Tensor, "rows columns"]:
        """Return the codes of the first picture in sampled ids."""
        picture = next(part for part in self.encoder.decode(ids) if isinstance(part, Codes)).picture
        assert isinstance(picture, Tensor), "decoded pictures are codes"
        return picture

    def text_of(self, ids: Int[Tensor, " n"]) -> str:
        """Return the text of sampled ids."""
        specials = set(self.vocabulary.specials.values())
        return self.text_tokenizer.decode([index for index in ids.tolist() if index not in specials]).strip()

    def parts_of(self, ids: Int[Tensor, " n"]) -> list[str | Image.Image]:
        """Return texts and pictures in sampled ids, in order."""
        parts: list[str | Image.Image] = []
        for part in self.encoder.decode(ids):
            if isinstance(part, Codes):
                assert isinstance(part.picture, Tensor), "decoded pictures are codes"
                parts.append(self.decode_picture(part.picture))
            elif text := part.strip():
                parts.append(text)
        return parts

    def decode_picture(self, codes: Int[Tensor, "rows columns"]) -> Image.Image:
        """Show codes."""
        return to_image(self.image_tokenizer.decode(codes[None].to(self.model.device))[0].cpu())

    def encode_picture(self, picture: Image.Image | Tensor) -> Int[Tensor, "rows columns"]:
        """Turn an image or pixels [3, h, w] into codes; codes stay."""
        if isinstance(picture, Tensor) and not picture.is_floating_point():
            return picture
        factor = self.image_tokenizer.config.down_sampling
        rows, columns = self.parts.layout.sizes[0]
        pixels = picture if isinstance(picture, Tensor) else None
        if isinstance(picture, Image.Image):
            fit, size = self.image_tokenizer.config.pictures, (rows * factor, columns * factor)
            if fit.kind == "area":
                size = fitted_size((picture.height, picture.width), fit, factor)
            pixels = to_pixels(picture, *size, fit=fit)
        assert pixels is not None, "a picture is an image, pixels or codes"
        return self.image_tokenizer.encode(pixels[None].to(self.model.device))[0].cpu()

    def resolve(self, document: Document) -> list[Any]:
        """Turn pictures into what their role needs: pixels for the understanding path, codes elsewhere."""
        entries: Sequence[Part | Turn] = [document] if isinstance(document, str) else document
        return [self._resolve_part(part) for part in entries]

    def _resolve_part(self, part: Part | Turn) -> Part | Turn:
        if isinstance(part, Turn):
            return Turn(part.role, tuple(self.resolve(part.parts)))
        if isinstance(part, Image.Image):
            part = Look(part)
        if isinstance(part, Look) and self.model.config.understanding is not None:
            size, fit = self.model.config.understanding.image_size, self.model.config.understanding.fit
            return Look(to_pixels(part.picture, size, size, fit=fit)) if isinstance(part.picture, Image.Image) else part
        if isinstance(part, Look | Draw | Codes):
            return type(part)(self.encode_picture(part.picture))
        return part


def changed(default: SamplingConfig, options: Options) -> SamplingConfig:
    """Return sampling settings with what the options give instead."""
    names = ("guidance_scale", "image_guidance_scale", "guidance_interval", "temperature", "top_k", "top_p")
    given: dict[str, Any] = {name: options.get(name) for name in names}
    return replace(default, **{name: value for name, value in given.items() if value is not None})
