"""Configuration of sampling; free of torch."""

import math
from dataclasses import dataclass
from typing import Literal, TypedDict

from anymodal.configuration import check_ranges

Want = Literal["any", "text", "image"]

Native = Literal["auto"] | bool
"""May the native kernel sample: where it can, always (or it is an error), never."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next id is chosen.

    Args:
        temperature: divides the logits; 0 takes the most likely id.
        top_k: keep the k most likely ids; 0 keeps all.
        top_p: keep the fewest ids whose probability reaches p (arXiv:1904.09751); 1 keeps all.
        guidance_scale: weight of the prompt against the unconditional prediction (arXiv:2207.12598); 1 is without.
        image_guidance_scale: weight of the prompt's pictures alone, where it shows some: guidance is then three-way, as
            Chameleon's; None is without.
        guidance_interval: from and up to which share of a picture's codes guidance acts (arXiv:2404.07724).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_scale: float = 1.0
    image_guidance_scale: float | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature must be finite and not negative, got {self.temperature}; 0 takes the most likely id."
            )
        for name in ("guidance_scale", "image_guidance_scale"):
            scale = getattr(self, name)
            if scale is not None and not math.isfinite(scale):
                raise ValueError(f"{name} must be finite, got {scale}; 1 does not guide.")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, got {self.top_k}; 0 keeps all ids.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}; 1 keeps all ids.")
        start, stop = self.guidance_interval
        if not 0 <= start <= stop <= 1:
            raise ValueError(
                f"guidance_interval must be two shares of a picture, the first no larger, got {start} and {stop}; "
                "0 and 1 guide all of it."
            )


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """A model folder's defaults, for pictures and for text, as `generation_config.json` holds them.

    Args:
        image: how codes are chosen.
        text: how all other ids are chosen.
        max_new_tokens: most ids of text.
        best_of: drawings of a prompt, of which `generate_image` keeps the one that best tells the model the prompt.
    """

    image: SamplingConfig = SamplingConfig()
    text: SamplingConfig = SamplingConfig(temperature=0.0)
    max_new_tokens: int = 64
    best_of: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.best_of < 1:
            raise ValueError(f"best_of must be at least 1, got {self.best_of}; 1 draws a picture once.")


class Options(TypedDict, total=False):
    """How a document is continued; None, or left out, is the default of the model folder.

    Attributes:
        want: what to write; "any" lets the model choose between text and pictures.
        max_new_tokens: most ids of text.
        max_images: most pictures that "any" draws.
        negative_prompt: what a picture is guided away from, for want "image".
        guidance_scale: weight of the document for pictures.
        image_guidance_scale: weight of the document's pictures alone.
        guidance_interval: from and up to which share of a picture guidance acts.
        temperature: of text and codes; 0 takes the most likely ones.
        top_k: keep the k most likely ids; 0 keeps all.
        top_p: keep the fewest ids whose probability reaches p.
        height: of a picture, in pixels, for want "image".
        width: of a picture, in pixels, for want "image".
        seed: of what is written.
    """

    want: Want
    max_new_tokens: int | None
    max_images: int
    negative_prompt: str | None
    guidance_scale: float | None
    image_guidance_scale: float | None
    guidance_interval: tuple[float, float] | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    height: int | None
    width: int | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the sampler works; nothing here changes what is sampled, but for `speculation` "accept".

    Args:
        max_rows: most rows that are computed at once; a guided picture takes two or three.
        prefill_tokens: most ids of prompts that are read at once, of one or of several.
        batch_invariant: compute in shapes that do not depend on the batch, so that ids are equal in every dtype,
            whatever else is sampled; costs the work of `max_rows` rows.
        speculation: guess a window of a picture's codes and check it in one pass: "jacobi" gives the very ids of plain
            sampling (arXiv:2305.10427 with noise of its own for every place), "accept" ids of the same distribution
            (arXiv:2410.01699).
        window: codes that speculation guesses ahead.
        compile: compile the forward pass of a step (torch.compile), or capture it as a graph on a GPU; pays off for
            long runs.
        lag: steps that the device may be ahead of the host, so that none waits for it; None: one on a GPU.
    """

    max_rows: int = 64
    prefill_tokens: int = 1024
    batch_invariant: bool = False
    speculation: Literal["none", "jacobi", "accept"] = "none"
    window: int = 16
    compile: bool = False
    lag: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(self, max_rows=2**20, prefill_tokens=2**30, window=2**20)
        if self.speculation not in ("none", "jacobi", "accept"):
            raise ValueError(f"speculation must be none, jacobi or accept, got {self.speculation!r}.")
        if self.batch_invariant and self.speculation != "none":
            raise ValueError("batch_invariant computes one id a step, so it goes without speculation; leave one out.")
        if self.lag is not None and self.lag not in (0, 1):
            raise ValueError(f"lag must be 0 or 1 steps, got {self.lag}; leave it out for what suits the device.")
