"""Configuration of sampling; free of torch."""

from dataclasses import dataclass


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
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_scale: float = 1.0
    image_guidance_scale: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}; 0 takes the most likely id.")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, got {self.top_k}; 0 keeps all ids.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}; 1 keeps all ids.")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """A model folder's defaults, for pictures and for text, as `generation_config.json` holds them."""

    image: SamplingConfig = SamplingConfig()
    text: SamplingConfig = SamplingConfig(temperature=0.0)
    max_new_tokens: int = 64
