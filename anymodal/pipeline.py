"""Pipeline: a model with its tokenizers and its sampler, what `from_pretrained` returns."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from anymodal.configuration import from_dict, to_dict
from anymodal.data.fitting import fitted_size
from anymodal.data.pictures import to_image, to_pixels
from anymodal.decoding.config import GenerationConfig, SamplingConfig
from anymodal.decoding.engine import Request, Sampler
from anymodal.decoding.usage import Usage
from anymodal.model.folder import ModelFolder
from anymodal.model.unified import AnyModal
from anymodal.published.registry import load_published, save_published
from anymodal.tokens.batch import Batch, pad
from anymodal.tokens.document import Codes, Document, Draw, Look, Part, Say, TokenSequence, Turn
from anymodal.tokens.grammar import compile_grammar, spell_sizes
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary
from anymodal.tokens.weights import dtype_of, read_json

EMBEDDED = Path(__file__).parent / "models"
Want = Literal["any", "text", "image"]


def from_pretrained(
    name_or_folder: str | Path, *, device: str = "auto", dtype: str = "auto", allow_pickle: bool = False
) -> "Pipeline":
    """Load an embedded model by name, or a model folder: ours, or one in a published layout.

    `allow_pickle` also reads weights that are stored as pickles, by torch's restricted unpickler.
    `dtype` "auto" computes in bfloat16 on a GPU and in float32 elsewhere, "stored" in what the weights are stored in.

    Raises:
        ValueError: no such model, or its folder is broken; the message names the file.
    """
    embedded = EMBEDDED / str(name_or_folder)
    folder = Path(name_or_folder)
    if not folder.is_dir() and embedded.is_dir():
        folder = embedded
    if not folder.is_dir():
        names = sorted(path.name for path in EMBEDDED.glob("*")) if EMBEDDED.is_dir() else []
        raise ValueError(
            f"there is no model {str(name_or_folder)!r}: no such folder, and the embedded models are {names}."
        )
    where = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    automatic = torch.bfloat16 if where.startswith("cuda") else torch.float32
    chosen = None if dtype == "stored" else automatic if dtype == "auto" else dtype_of(dtype)
    ours = "format" in read_json(folder / "config.json") if (folder / "config.json").is_file() else False
    parts = ModelFolder.load(folder) if ours else load_published(folder, allow_pickle=allow_pickle)
    parts.model.to(device=where, dtype=chosen)
    wide = torch.float64 if chosen == torch.float64 else torch.float32
    parts.image_tokenizer.to(device=where, dtype=None if chosen is None else wide)
    return Pipeline(parts)


class Pipeline:
    """Draw from prompts, answer about pictures, and continue documents of both.

    A None among the options means the default of the model folder's `generation_config.json`.
    """

    def __init__(self, parts: ModelFolder) -> None:
        """Put the parts of a model folder together."""
        self.parts = parts
        self.model: AnyModal = parts.model
        self.text_tokenizer: TextTokenizer = parts.text_tokenizer
        self.image_tokenizer: ImageTokenizer = parts.image_tokenizer
        self.vocabulary: Vocabulary = parts.model.vocabulary
        self.generation = from_dict(GenerationConfig, parts.generation, "generation_config.json")
        self.encoder = parts.encoder()
        self.sampler = Sampler(parts.model)
        self.usage = Usage(tokens=0, seconds=0.0)

    def generate_image(  # noqa: PLR0913  (each is an option that users of diffusers know)
        self,
        prompt: str | Sequence[str],
        *,
        num_images: int = 1,
        negative_prompt: str | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
    ) -> list[Image.Image]:
        """Draw `num_images` pictures of every prompt, in their order; picture i of a prompt has seed `seed` + i.

        Raises:
            ValueError: the model cannot draw this size, or a prompt does not fit the context.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        sampling = self._sampling(self.generation.image, guidance_scale, temperature, top_k, top_p)
        requests = [
            self._image_request([text], negative_prompt, sampling, self._grid(height, width), seed + i)
            for text in prompts
            for i in range(num_images)
        ]
        return [self._decode_picture(codes) for codes in self._draw(requests)]

    def answer(  # noqa: PLR0913
        self,
        image: Image.Image | Sequence[Image.Image],
        question: str | Sequence[str],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Any:
        """Answer a question about a picture; given as many questions as pictures, return a list of answers.

        Raises:
            ValueError: the numbers of pictures and questions differ, or a prompt does not fit the context.
        """
        single = isinstance(question, str)
        questions = [question] if isinstance(question, str) else list(question)
        images = [image] * len(questions) if isinstance(image, Image.Image) else list(image)
        if len(images) != len(questions):
            raise ValueError(
                f"there must be one picture a question, got {len(images)} pictures and {len(questions)} questions."
            )
        sampling = self._sampling(self.generation.text, None, temperature, top_k, top_p)
        grammar = compile_grammar(self.vocabulary, self.parts.layout, "text", text_tokenizer=self.text_tokenizer)
        requests = [
            Request(
                prompt=self.encoder.encode(self._resolve([Look(picture), text]), complete=False),
                grammar=grammar,
                text=sampling,
                seed=seed,
                max_new_tokens=max_new_tokens or self.generation.max_new_tokens,
            )
            for picture, text in zip(images, questions, strict=True)
        ]
        answers = [self._text(ids) for ids in self._timed(requests)]
        return answers[0] if single else answers

    def generate(  # noqa: PLR0913
        self,
        document: Document,
        *,
        want: Want = "any",
        max_new_tokens: int | None = None,
        max_images: int = 4,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[str | Image.Image]:
        """Continue a document of text and pictures; return the parts that the model writes.

        `want` "any" lets the model choose between text and pictures, at most `max_images` of them.

        Raises:
            ValueError: the document does not fit the context.
        """
        drawing = self._sampling(self.generation.image, guidance_scale, temperature, top_k, top_p)
        if image_guidance_scale is not None:
            drawing = replace(drawing, image_guidance_scale=image_guidance_scale)
        writing = self._sampling(self.generation.text, None, temperature, top_k, top_p)
        resolved = self._resolve(document)
        if want == "image":
            codes = self._draw([self._image_request(resolved, None, drawing, None, seed)])[0]
            return [self._decode_picture(codes)]
        return self._continue(
            resolved, want, max_new_tokens or self.generation.max_new_tokens, max_images, (drawing, writing, seed)
        )

    def log_likelihood(self, document: Document, target: str | Draw) -> float:
        """Return the log probability, in nats, of `target` as what comes next; closing specials do not count.

        Raises:
            ValueError: document and target do not fit the context.
        """
        said: Part = Say(target) if isinstance(target, str) else target
        prompt = [Turn("user", tuple(self._resolve(document))), Turn("assistant", tuple(self._resolve([said])))]
        sequence = self.encoder.encode(prompt)
        control = torch.tensor(sorted(self.vocabulary.specials.values()))
        counted = TokenSequence(sequence.ids, sequence.loss & ~torch.isin(sequence.ids, control), sequence.looks)
        with torch.inference_mode():
            losses = self.model(self._batch([counted])).losses
        return -float(sum(float(part.total) for part in losses.values()))

    def prepare(self, documents: Sequence[Document]) -> Batch:
        """Turn training documents into a batch for `model`, a row each.

        Raises:
            ValueError: a document has no target.
        """
        return self._batch([self.encoder.encode(self._resolve(document)) for document in documents])

    def save_pretrained(self, folder: str | Path, *, layout: str | None = None) -> None:
        """Write a model folder that `from_pretrained` reads; with a `layout`, one that the published code reads.

        Raises:
            OSError: the disk is full or read-only; what was there stays.
            ValueError: an unknown layout, or one that cannot express this model.
        """
        if layout is not None:
            save_published(self.parts, Path(folder), layout)
            return
        replace(self.parts, generation=to_dict(self.generation)).save(folder)

    def reconstruct(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Pass pictures through the image tokenizer: the best that the model could draw."""
        return [self._decode_picture(self._encode_picture(image)) for image in images]

    def _batch(self, sequences: Sequence[TokenSequence]) -> Batch:
        batch = pad(sequences, self.vocabulary.special("pad"), self.model.look_tokens).to(self.model.device)
        if batch.look_pixels is not None:
            batch.look_pixels = batch.look_pixels.to(self.model.embedding.weight.dtype)
        return batch

    def _sampling(
        self,
        default: SamplingConfig,
        guidance: float | None,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
    ) -> SamplingConfig:
        given: dict[str, Any] = {"guidance_scale": guidance, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        return replace(default, **{name: value for name, value in given.items() if value is not None})

    def _grid(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Turn a size in pixels into a grid of codes."""
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

    def _image_request(
        self,
        document: Document,
        negative: str | None,
        sampling: SamplingConfig,
        grid: tuple[int, int] | None,
        seed: int,
    ) -> Request:
        size = grid if self.parts.layout.kind == "rows" else None
        grammar = compile_grammar(
            self.vocabulary, self.parts.layout, "image", text_tokenizer=self.text_tokenizer, size=size
        )
        prompt = self.encoder.prompt_image(document, size=size)
        return Request(
            prompt=prompt,
            unconditional=self._unconditional(prompt, negative, size),
            pictures=self.encoder.pictures_alone(prompt),
            grammar=grammar,
            image=sampling,
            seed=seed,
        )

    def _unconditional(
        self, prompt: TokenSequence, negative: str | None, size: tuple[int, int] | None
    ) -> TokenSequence:
        if negative is None and self.parts.template.unconditional != "empty":
            return self.encoder.unconditional(prompt)
        return self.encoder.prompt_image([negative or ""], size=size)

    def _continue(
        self,
        document: Document,
        want: Want,
        budget: int,
        max_images: int,
        how: tuple[SamplingConfig, SamplingConfig, int],
    ) -> list[str | Image.Image]:
        """Write text up to a picture, draw it with guidance, and go on behind it."""
        drawing, writing, seed = how
        prompt = self.encoder.encode(document, complete=False)
        boi, eoi, eos = (self.vocabulary.special(name) for name in ("boi", "eoi", "eos"))
        parts: list[str | Image.Image] = []
        drawn = 0
        while budget > 0:
            kind: Want = "any" if want == "any" and drawn < max_images else "text"
            grammar = compile_grammar(self.vocabulary, self.parts.layout, kind, text_tokenizer=self.text_tokenizer)
            stops = frozenset({boi})
            request = Request(
                prompt=prompt, grammar=grammar, text=writing, seed=seed, max_new_tokens=budget, stop_ids=stops
            )
            ids = self._timed([request])[0]
            budget -= len(ids)
            if text := self._text(ids):
                parts.append(text)
            if not len(ids) or int(ids[-1]) != boi:
                break
            prompt = _extend(prompt, ids)
            grammar = compile_grammar(self.vocabulary, self.parts.layout, "image", text_tokenizer=self.text_tokenizer)
            unconditional = self._unconditional(prompt, None, None)
            picture = Request(
                prompt=prompt,
                grammar=grammar,
                unconditional=unconditional,
                pictures=self.encoder.pictures_alone(prompt),
                image=drawing,
                seed=seed,
            )
            ids = self._timed([picture])[0]
            parts.append(self._decode_picture(self._codes(ids)))
            prompt, drawn = _extend(prompt, ids), drawn + 1
            assert int(ids[-1]) in (eoi, eos), "the grammar closes every picture"
        return parts

    def _draw(self, requests: Sequence[Request]) -> list[Int[Tensor, "rows columns"]]:
        if not self.image_tokenizer.config.has_decoder:
            raise ValueError(
                "this model has no decoder for pictures, so what it draws could not be shown; put the decoder's file "
                "into its folder (docs/published.md tells which)."
            )
        return [self._codes(ids) for ids in self._timed(requests)]

    def _timed(self, requests: Sequence[Request]) -> list[Int[Tensor, " n"]]:
        start = time.perf_counter()
        results = self.sampler.generate(requests)
        tokens, seconds = sum(len(ids) for ids in results), time.perf_counter() - start
        self.usage = Usage(tokens=tokens, seconds=seconds, rows=len(results))
        return results

    def _codes(self, ids: Int[Tensor, " n"]) -> Int[Tensor, "rows columns"]:
        picture = next(part for part in self.encoder.decode(ids) if isinstance(part, Codes)).picture
        assert isinstance(picture, Tensor), "decoded pictures are codes"
        return picture

    def _text(self, ids: Int[Tensor, " n"]) -> str:
        specials = set(self.vocabulary.specials.values())
        return self.text_tokenizer.decode([index for index in ids.tolist() if index not in specials]).strip()

    def _decode_picture(self, codes: Int[Tensor, "rows columns"]) -> Image.Image:
        return to_image(self.image_tokenizer.decode(codes[None].to(self.model.device))[0].cpu())

    def _encode_picture(self, picture: Image.Image | Tensor) -> Int[Tensor, "rows columns"]:
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

    def _resolve(self, document: Document) -> list[Any]:
        """Turn pictures into what their role needs: pixels for the understanding path, codes elsewhere."""
        return [self._resolve_part(part) for part in ([document] if isinstance(document, str) else document)]

    def _resolve_part(self, part: Part | Turn) -> Part | Turn:
        if isinstance(part, Turn):
            return Turn(part.role, tuple(self._resolve(part.parts)))
        if isinstance(part, Image.Image):
            part = Look(part)
        if isinstance(part, Look) and self.model.config.understanding is not None:
            size, fit = self.model.config.understanding.image_size, self.model.config.understanding.fit
            return Look(to_pixels(part.picture, size, size, fit=fit)) if isinstance(part.picture, Image.Image) else part
        if isinstance(part, Look | Draw | Codes):
            return type(part)(self._encode_picture(part.picture))
        return part


def _extend(prompt: TokenSequence, ids: Int[Tensor, " n"]) -> TokenSequence:
    grown = torch.cat((prompt.ids, ids))
    return TokenSequence(grown, torch.zeros(len(grown), dtype=torch.bool), prompt.looks)
