"""Our sampler as `sampling.py` measures it; a variant is one line of `VARIANTS`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peers import Prompts
from torch import Tensor

import anymodal
from anymodal.decoding.config import EngineConfig, SamplingConfig
from anymodal.decoding.request import Request
from anymodal.tokens.document import Codes
from anymodal.tokens.grammar import Grammar, compile_grammar


@dataclass(frozen=True)
class Variant:
    """One way to run our sampler: what `from_pretrained` is told.

    `weight_bytes` is what a weight takes in memory; what `compiles` takes minutes, and no part in a quick run.
    """

    name: str
    weight_bytes: float
    load: Mapping[str, Any] = field(default_factory=dict)
    compiles: bool = False


VARIANTS = (
    Variant("float32", 4, load={"dtype": "float32", "native": False}),
    Variant("float32 native", 4, load={"dtype": "float32", "native": True}),
    Variant("bfloat16", 2, load={"dtype": "bfloat16", "native": False}),
    Variant("bfloat16 native", 2, load={"dtype": "bfloat16", "native": True}),
    Variant("int8", 1, load={"dtype": "int8", "native": False}),
    Variant("int8 native", 1, load={"dtype": "int8", "native": True}),
    Variant(
        "bfloat16 compiled",
        2,
        load={"dtype": "bfloat16", "native": False, "engine": EngineConfig(compile=True)},
        compiles=True,
    ),
    Variant(
        "float32 compiled",
        4,
        load={"dtype": "float32", "native": False, "engine": EngineConfig(compile=True)},
        compiles=True,
    ),
)


class Ours:
    """Our sampler with one variant's settings."""

    def __init__(self, folder: Path, variant: Variant, device: str, guidance: float) -> None:
        """Load the folder."""
        self.pipe = anymodal.from_pretrained(folder, device=device, **variant.load)
        self.variant, self.guidance = variant, guidance
        layout = self.pipe.parts.layout
        self.size = layout.sizes[0] if layout.kind == "rows" else None
        self.side = layout.sizes[0][0]

    def generate(self, requests: Sequence[Request]) -> list[Tensor]:
        """Return the new ids of every request."""
        return self.pipe.sampler.generate(requests)

    def grammar(self, want: Any) -> Grammar:
        """Say what may be written; a text never ends by itself, so that its length is known."""
        pipe, size = self.pipe, self.size if want == "image" else None
        tokenizer = pipe.text_tokenizer
        made = compile_grammar(pipe.vocabulary, pipe.parts.layout, want, text_tokenizer=tokenizer, size=size)
        if want == "text":
            made.allowed[:, made.class_of[pipe.vocabulary.special("eos")]] = False
        return made

    def pictures(self, count: int, seed: int | None) -> list[Request]:
        """Ask for pictures of different prompts of one length, with guidance."""
        encoder, grammar = self.pipe.encoder, self.grammar("image")
        sampling = SamplingConfig(temperature=float(seed is not None), guidance_scale=self.guidance)
        requests = []
        for i in range(count):
            prompt = encoder.prompt_image([f"picture {i:03d}"], size=self.size)
            padded = self.pipe.parts.template.unconditional == "padded"
            beside = encoder.unconditional(prompt) if padded else encoder.prompt_image([""], size=self.size)
            request = Request(
                prompt=prompt, unconditional=beside, grammar=grammar, image=sampling, seed=1000 * (seed or 0) + i
            )
            requests.append(request)
        return requests

    def codes(self, count: int, seed: int | None) -> Tensor:
        """Sample pictures and return their codes."""
        return torch.stack([self.read(ids) for ids in self.generate(self.pictures(count, seed))])

    def read(self, ids: Tensor) -> Tensor:
        """Return the codes of a written picture."""
        parts = self.pipe.encoder.decode(ids.cpu())
        return torch.as_tensor(next(part for part in parts if isinstance(part, Codes)).picture).flatten()

    def prompts(self, count: int) -> Prompts:
        """Return the same prompts as transformers takes them."""
        requests, device = self.pictures(count, 0), self.pipe.model.device
        ids = torch.stack([request.prompt.ids for request in requests])
        beside = torch.stack([request.unconditional.ids for request in requests if request.unconditional is not None])
        ends = () if self.size is None else tuple(self.pipe.vocabulary.special(name) for name in ("eof", "eoi"))
        return Prompts(ids.to(device), beside.to(device), self.side, self.guidance, ends)

    def logits(self, codes: Tensor) -> Tensor:
        """Return the logits [pictures, tokens, codes] that the sampler sees behind given codes, without guidance.

        The image head tells the sampler that the given code is the most likely one.

        Raises:
            RuntimeError: the sampler does not ask the model's image head once a code.
        """
        model, head = self.pipe.model, self.pipe.model.image_logits
        found = []
        for request, row in zip(self.pictures(len(codes), None), codes, strict=True):
            seen = list[Tensor]()

            def watched(hidden: Tensor, row: Tensor = row, seen: list[Tensor] = seen) -> Tensor:
                seen.append(head(hidden))
                wanted = row[len(seen) - 1 : len(seen)].to(seen[-1].device)
                return torch.zeros_like(seen[-1]).index_fill(-1, wanted, 1.0)

            object.__setattr__(model, "image_logits", watched)
            try:
                written = self.generate([replace(request, unconditional=None)])[0]
            finally:
                object.__delattr__(model, "image_logits")
            if len(seen) != len(row) or not torch.equal(self.read(written), row.cpu()):
                raise RuntimeError(
                    f"{len(row)} codes must take a call of image_logits each, it was called {len(seen)} x."
                )
            found.append(torch.cat([each.reshape(1, -1).float() for each in seen]))
        return torch.stack(found)

    def mixed(self, count: int, seed: int) -> list[Request]:
        """Ask for pictures and texts in turn, each with settings and a seed of its own."""
        requests, text = self.pictures(count, seed), self.grammar("text")
        for i, request in enumerate(requests):
            settings = SamplingConfig(temperature=0.7 + 0.02 * i, top_k=20 * (i % 5), top_p=1.0 - 0.05 * (i % 4))
            if i % 2:
                prompt = self.pipe.encoder.encode([f"What is number {i}?" + "?" * i], complete=False)
                budget = self.side**2 // 2
                requests[i] = Request(prompt=prompt, grammar=text, text=settings, seed=i, max_new_tokens=budget)
            else:
                requests[i] = replace(request, image=replace(settings, guidance_scale=1.0 + i % 6))
        return requests
