"""Pipeline: a model with its tokenizers and its sampler, what `from_pretrained` returns."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack, cast, get_args

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from anymodal.chat import Chat
from anymodal.configuration import to_dict
from anymodal.data.samples import DESCRIBE
from anymodal.decoding.config import EngineConfig, GenerationConfig, Native, Options
from anymodal.decoding.engine import Engine
from anymodal.decoding.native import has_kernel
from anymodal.decoding.request import Request, Ticket
from anymodal.decoding.sampler import Sampler, evaluating
from anymodal.decoding.usage import Usage
from anymodal.decoding.weights import Kind, has_bfloat16, is_light, lighten
from anymodal.model.folder import EMBEDDED, ModelFolder, here_or_embedded
from anymodal.model.unified import AnyModal
from anymodal.prompting import Prompter, changed
from anymodal.published.registry import load_published, save_published
from anymodal.streaming import Event, TextPiece, stream
from anymodal.tokens.batch import Batch, pad
from anymodal.tokens.document import Document, Draw, Look, Part, Say, TokenSequence, Turn
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary
from anymodal.tokens.weights import dtype_of, read_json

TRY = 2**32  # between the seeds of drawings from which the best is kept


def from_pretrained(
    name_or_folder: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    native: Native = "auto",
    engine: EngineConfig | None = None,
) -> "Pipeline":
    """Load an embedded model by name, or a model folder: ours, or one in a published layout.

    `allow_pickle` also reads weights that are stored as pickles, by torch's restricted unpickler.

    `dtype` "auto" is bfloat16 on a GPU and on processors with instructions for it, else float32; "stored" is what the
    weights are stored in. On a CPU "bfloat16" and "int8" are formats of the weights, what is computed with them stays
    float32; `save_pretrained` reads the stored weights again.

    `native` samples with a kernel that the system's C compiler builds once, for float32, bfloat16 and int8 on a CPU:
    ids are those of torch's operators up to near-ties. "auto" does where it can be built, and logs where it cannot;
    False leaves weights in the file that they are mapped from, where it holds them in `dtype`.

    Raises:
        ValueError: no such model, or its folder is broken; the message names the file. Or `native` is True, and there
            is no kernel for this device or `dtype`, or no compiler. Or torch has no such device here.
    """
    folder = find_folder(name_or_folder)
    where = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    light, chosen, native = _format(dtype, where, native)
    _check_device(where)
    stored = partial(_load, folder, allow_pickle=allow_pickle)
    parts = stored()
    parts.model.to(device=where, dtype=chosen)
    wide = torch.float64 if chosen == torch.float64 else torch.float32
    parts.image_tokenizer.to(device=where, dtype=None if dtype == "stored" else wide)
    if light is not None:
        lighten(parts.model, light, native=native)
    return Pipeline(parts, engine, stored)


def _load(folder: Path, *, allow_pickle: bool) -> ModelFolder:
    ours = "format" in read_json(folder / "config.json") if (folder / "config.json").is_file() else False
    return ModelFolder.load(folder) if ours else load_published(folder, allow_pickle=allow_pickle)


def find_folder(name_or_folder: str | Path) -> Path:
    """Return the folder of an embedded model, or one that stands on the disk.

    Raises:
        ValueError: there is no such model.
    """
    folder = here_or_embedded(Path(name_or_folder))
    if not folder.is_dir():
        names = sorted(path.name for path in EMBEDDED.glob("*")) if EMBEDDED.is_dir() else []
        raise ValueError(
            f"there is no model {str(name_or_folder)!r}: no such folder, and embedded are {', '.join(names)}."
        )
    return folder


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"device must be one that torch has here, got {name!r} ({why}); try auto or cpu.") from error


def _format(dtype: str, device: str, native: Native) -> tuple[Kind | None, torch.dtype | None, bool]:
    """Return the format of light weights, the type of all numbers (None: as stored), and whether to take the kernel."""
    on_cpu = device.startswith("cpu")
    name = dtype if dtype != "auto" else "bfloat16" if not on_cpu or has_bfloat16() else "float32"
    if name == "int8" and not on_cpu:
        raise ValueError(f"int8 weights are for sampling on a CPU, not on {device}; take bfloat16.")
    known = on_cpu and name in get_args(Kind)
    if native is True and not known:
        raise ValueError(f"the native kernel multiplies float32, bfloat16 and int8 on a CPU, not {name} on {device}.")
    native = known and (has_kernel() if native == "auto" else native)
    if native or (known and name != "float32"):
        return cast(Kind, name), None, native
    return None, None if name == "stored" else dtype_of(name), False


class Pipeline:
    """Draw from prompts, answer about pictures, and continue documents of both.

    A None among the options means the default of the model folder's `generation_config.json`; `engine` says how the
    sampler works, and `stored` reads the parts again as they are stored.
    """

    def __init__(
        self,
        parts: ModelFolder,
        engine: EngineConfig | None = None,
        stored: Callable[[], ModelFolder] | None = None,
    ) -> None:
        """Put the parts of a model folder together."""
        self.parts, self.stored = parts, stored
        self.model: AnyModal = parts.model
        self.text_tokenizer: TextTokenizer = parts.text_tokenizer
        self.image_tokenizer: ImageTokenizer = parts.image_tokenizer
        self.vocabulary: Vocabulary = parts.model.vocabulary
        self.prompter = Prompter(parts)
        self.encoder = self.prompter.encoder
        self.generation: GenerationConfig = self.prompter.generation
        self.sampler = Sampler(parts.model, engine)
        self.usage = Usage(tokens=0, seconds=0.0)

    def generate_image(  # noqa: PLR0913  (each is an option that users of diffusers know)
        self,
        prompt: str | Sequence[str],
        *,
        num_images: int = 1,
        best_of: int | None = None,
        negative_prompt: str | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int | Sequence[int] = 0,
    ) -> list[Image.Image]:
        """Draw `num_images` pictures of every prompt, in their order; picture i of a prompt has seed `seed` + i.

        All prompts have the same `seed`, or each its own, given as many as prompts.

        Each is the best of `best_of` drawings: that from which the model, asked to describe it, is likeliest to write
        the prompt (reranking as in arXiv:2102.12092, section 2.6, by the model itself in place of CLIP). Drawing j of
        them has j * 2**32 added to its seed.

        Raises:
            ValueError: the model cannot draw this size, a prompt does not fit the context, `best_of` is below 1, or
                the numbers of prompts and seeds differ.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(prompts):
            raise ValueError(f"there must be one seed a prompt, got {len(seeds)} seeds and {len(prompts)} prompts.")
        tries = self.generation.best_of if best_of is None else replace(self.generation, best_of=best_of).best_of
        options = Options(
            guidance_scale=guidance_scale, guidance_interval=guidance_interval, temperature=temperature, top_k=top_k,
            top_p=top_p,
        )  # fmt: skip
        self.prompter.must_decode()
        sampling, grid = changed(self.generation.image, options), self.prompter.grid(height, width)
        requests = [
            self.prompter.image_request([text], negative_prompt, sampling, grid, first + i + j * TRY)
            for text, first in zip(prompts, seeds, strict=True)
            for i in range(num_images)
            for j in range(tries)
        ]
        codes = [self.prompter.codes_of(ids) for ids in self._timed(requests)]
        wanted = [text for text in prompts for _ in range(num_images)]
        kept = [self._best(codes[k * tries : (k + 1) * tries], text) for k, text in enumerate(wanted)]
        return [self.prompter.decode_picture(each) for each in kept]

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
        sampling = changed(self.generation.text, Options(temperature=temperature, top_k=top_k, top_p=top_p))
        budget = self.prompter.budget(max_new_tokens)
        requests = [
            self.prompter.text_request(self.prompter.resolve([Look(picture), text]), sampling, budget, seed)
            for picture, text in zip(images, questions, strict=True)
        ]
        answers = [self.prompter.text_of(ids) for ids in self._timed(requests)]
        return answers[0] if single else answers

    def generate(
        self,
        document: Document,
        *,
        on_event: Callable[[Event], object] | None = None,
        **options: Unpack[Options],
    ) -> list[str | Image.Image]:
        """Continue a document of text and pictures; return the parts that the model writes.

        `on_event` sees them grow, as `stream` gives them, and stops early by returning True: what was begun is dropped.

        Raises:
            ValueError: the document does not fit the context.
        """
        if on_event is None:
            return self.generate_batch([document], **options)[0]
        parts: list[str | Image.Image] = []
        written = ""
        for event in self.stream(document, **options):
            if isinstance(event, TextPiece):
                written += event.text
            elif event.done:
                parts += [*([written] if written else []), event.image]
                written = ""
            if on_event(event) is True:
                break
        return [*parts, *([written] if written else [])]

    def generate_batch(
        self, documents: Sequence[Document], **options: Unpack[Options]
    ) -> list[list[str | Image.Image]]:
        """Continue documents, all in one batch; return the parts that the model writes behind each.

        Raises:
            ValueError: a document does not fit the context.
        """
        requests = [self.prompter.request(document, options) for document in documents]
        return [self.prompter.parts_of(ids) for ids in self._timed(requests)]

    def stream(self, document: Document, *, rows: bool = True, **options: Unpack[Options]) -> Iterator[Event]:
        """Continue a document, and yield pieces of text and partial pictures, at most one a row of codes, as they come.

        Without `rows` pictures come whole. Leaving the loop stops the sampler.

        Raises:
            ValueError: the document does not fit the context.
        """
        engine = Engine(self.model, self.sampler.config)
        ticket = engine.submit(self.prompter.request(document, options))
        return self._counted(engine, ticket, stream(engine, ticket, self.prompter, rows=rows))

    def chat(self) -> Chat:
        """Begin a conversation, which reads again nothing of what was said."""
        return Chat(self.prompter, Engine(self.model, self.sampler.config, kept=1))

    def log_likelihood(self, document: Document, target: str | Draw) -> float:
        """Return the log probability, in nats, of `target` as what comes next; closing specials do not count.

        Raises:
            ValueError: document and target do not fit the context.
        """
        return self.log_likelihoods(document, [target])[0]

    def log_likelihoods(self, document: Document, targets: Sequence[str | Draw]) -> list[float]:
        """Return `log_likelihood` of each of several targets, such as the options of a question, in one pass.

        Raises:
            ValueError: document and targets do not fit the context, or there is no target.
        """
        if not targets:
            raise ValueError("there is nothing to tell the likelihood of; give one target or more.")
        return self._log_likelihoods([(document, target) for target in targets])

    def prepare(self, documents: Sequence[Document]) -> Batch:
        """Turn training documents into a batch for `model`, a row each.

        Raises:
            ValueError: a document has no target.
        """
        return self._batch([self.encoder.encode(self.prompter.resolve(document)) for document in documents])

    def save_pretrained(self, folder: str | Path, *, layout: str | None = None) -> None:
        """Write a model folder that `from_pretrained` reads; with a `layout`, one that the published code reads.

        Where weights were rounded for sampling, those that are stored are read again and written.

        Raises:
            OSError: the disk is full or read-only; what was there stays.
            ValueError: an unknown layout, one that cannot express this model, or weights that were rounded
                for sampling and are stored nowhere.
        """
        parts = self.parts
        if is_light(self.model):
            if self.stored is None:
                raise ValueError("these weights are rounded for sampling; save the model before `lighten` rounds it.")
            parts = self.stored()
        if layout is not None:
            save_published(parts, Path(folder), layout)
            return
        replace(parts, generation=to_dict(self.generation)).save(folder)

    def reconstruct(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Pass pictures through the image tokenizer: the best that the model could draw."""
        return [self.prompter.decode_picture(self.prompter.encode_picture(image)) for image in images]

    def _best(self, drawings: Sequence[Int[Tensor, "rows columns"]], prompt: str) -> Int[Tensor, "rows columns"]:
        """Return the codes of the drawing from which the model is likeliest to tell the prompt."""
        if len(drawings) == 1:
            return drawings[0]
        looks: Sequence[Any] = drawings
        if self.model.config.understanding is not None:
            looks = [self.prompter.decode_picture(each) for each in drawings]
        told = self._log_likelihoods([([Look(each), DESCRIBE], prompt) for each in looks])
        return drawings[told.index(max(told))]

    def _log_likelihoods(self, wanted: Sequence[tuple[Document, str | Draw]]) -> list[float]:
        """Return the log probability of each target behind its document, all in one pass."""
        control, sequences = torch.tensor(sorted(self.vocabulary.specials.values())), []
        for document, target in wanted:
            said: Part = Say(target) if isinstance(target, str) else target
            asked, told = (tuple(self.prompter.resolve(parts)) for parts in (document, [said]))
            sequence = self.encoder.encode([Turn("user", asked), Turn("assistant", told)])
            counted = sequence.loss & ~torch.isin(sequence.ids, control)
            sequences.append(TokenSequence(sequence.ids, counted, sequence.looks))
        with evaluating(self.model), torch.inference_mode():
            return self.model.log_likelihoods(self._batch(sequences)).tolist()

    def _batch(self, sequences: Sequence[TokenSequence]) -> Batch:
        batch = pad(sequences, self.vocabulary.special("pad"), self.model.look_tokens).to(self.model.device)
        if batch.look_pixels is not None:
            batch.look_pixels = batch.look_pixels.to(self.model.embedding.weight.dtype)
        return batch

    def _counted(self, engine: Engine, ticket: Ticket, events: Iterator[Event]) -> Iterator[Event]:
        start = time.perf_counter()
        try:
            with evaluating(self.model):
                yield from events
        finally:
            seconds = time.perf_counter() - start
            self.usage = Usage.of([ticket], seconds=seconds, passes=engine.passes)

    def _timed(self, requests: Sequence[Request]) -> list[Int[Tensor, " n"]]:
        results = self.sampler.generate(requests)
        self.usage = self.sampler.usage
        return results
