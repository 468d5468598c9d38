"""From logits to an id: guidance, temperature, top-k, top-p, and the noise of a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anymodal.decoding.config import SamplingConfig
from anymodal.decoding.noise import Noise, gumbel

NOT_NUMBERS, NOTHING_ALLOWED = 1, 2
FAULTS = {NOT_NUMBERS: "not numbers", NOTHING_ALLOWED: "no finite number among the allowed ids"}


class SamplingError(ValueError):
    """A row has no id to choose: its logits are not numbers, or the grammar allows none of them."""


@dataclass(frozen=True)
class Settings:
    """How the rows of a batch choose, as tensors; the flags say what any of them needs.

    >>> Settings.of([SamplingConfig(temperature=0.0), SamplingConfig(top_k=3)]).most
    3
    """

    temperature: Float[Tensor, "b 1"]
    top_k: Int[Tensor, "b 1"]
    top_p: Float[Tensor, "b 1"]
    most: int
    cuts: bool
    samples: bool
    scales: bool
    greedy: bool

    @classmethod
    def of(cls, configs: Sequence[SamplingConfig], device: torch.device | str = "cpu") -> "Settings":
        """Gather the settings of rows."""
        kept = [each.top_k for each in configs]
        return cls(
            temperature=torch.tensor([[each.temperature] for each in configs], dtype=torch.float64, device=device),
            top_k=torch.tensor([[count] for count in kept], device=device),
            top_p=torch.tensor([[each.top_p] for each in configs], dtype=torch.float64, device=device),
            most=max(kept, default=0),
            cuts=any(each.top_p < 1 for each in configs),
            samples=any(each.temperature > 0 for each in configs),
            scales=any(each.temperature not in (0, 1) for each in configs),
            greedy=any(each.temperature == 0 for each in configs),
        )


class Choice(NamedTuple):
    """The next id of every row, and what is wrong with its logits: a key of `FAULTS`, or 0."""

    ids: Int[Tensor, " b"]
    faults: Int[Tensor, " b"]


def guide(
    conditional: Float[Tensor, "b v"], unconditional: Float[Tensor, "b v"], scale: Float[Tensor, " b"]
) -> Float[Tensor, "b v"]:
    """Push logits away from the unconditional ones: u + s (c - u), as Chameleon, Emu3 and Janus do."""
    return unconditional + scale[:, None].to(conditional.dtype) * (conditional - unconditional)


def guide_three_ways(
    conditional: Float[Tensor, "b v"],
    pictures: Float[Tensor, "b v"],
    unconditional: Float[Tensor, "b v"],
    scale: Float[Tensor, " b"],
    image_scale: Float[Tensor, " b"],
) -> Float[Tensor, "b v"]:
    """Push by the prompt's pictures and by its text apart: u + s_image (p - u) + s (c - p) (arXiv:2211.09800, eq. 3).

    `pictures` are the logits behind the prompt's pictures alone; so does Chameleon's released sampler.
    """
    by_text, by_image = (each[:, None].to(conditional.dtype) for each in (scale, image_scale))
    return unconditional + by_image * (pictures - unconditional) + by_text * (conditional - pictures)


def choose(
    logits: Float[Tensor, "b v"],
    settings: Settings,
    *,
    ids: Int[Tensor, " v"],
    seeds: Int[Tensor, " b"],
    positions: Int[Tensor, " b"],
    allowed: Bool[Tensor, "b v"] | None = None,
    noise: Noise = gumbel,
) -> Choice:
    """Choose the next id of every row among `ids`, without asking the device for a number.

    Computed in float32, or in what is wider. A row with a fault gets an id that means nothing. `noise` is `gumbel`, or
    what computes the same faster.
    """
    scaled, faults = prepared(logits, settings, allowed)
    if settings.samples:
        noisy = scaled + noise(seeds, positions, ids, scaled.dtype)
        scaled = torch.where(settings.temperature > 0, noisy, scaled) if settings.greedy else noisy
    return Choice(ids[scaled.argmax(dim=-1)], faults)


def prepared(
    logits: Float[Tensor, "b v"], settings: Settings, allowed: Bool[Tensor, "b v"] | None = None
) -> tuple[Float[Tensor, "b v"], Int[Tensor, " b"]]:
    """Return logits of which a softmax is what rows sample from, and their faults; those at temperature 0 stay."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if allowed is not None:
        wide = wide.masked_fill(~allowed, -torch.inf)
    best = wide.amax(dim=-1)
    faults = torch.where(torch.isneginf(best), NOTHING_ALLOWED, torch.where(torch.isfinite(best), 0, NOT_NUMBERS))
    if not settings.samples:
        return wide, faults
    scaled = wide
    if settings.scales:
        temperature = settings.temperature.to(wide.dtype)
        scaled = torch.where(temperature > 0, wide / temperature.clamp(min=1e-6), wide)
    if settings.most:
        scaled = _keep_top_k(scaled, settings)
    if settings.cuts:
        scaled = _keep_top_p(scaled, settings)
    return scaled, faults


def _keep_top_k(logits: Float[Tensor, "b v"], settings: Settings) -> Float[Tensor, "b v"]:
    best = logits.topk(min(settings.most, logits.shape[-1]), dim=-1).values
    threshold = best.gather(1, (settings.top_k - 1).clamp(0, best.shape[-1] - 1))
    return logits.masked_fill((logits < threshold) & (settings.top_k > 0), -torch.inf)


def _keep_top_p(logits: Float[Tensor, "b v"], settings: Settings) -> Float[Tensor, "b v"]:
    order = logits.sort(dim=-1, descending=True)
    probabilities = order.values.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = before >= settings.top_p
    return logits.masked_fill(dropped.scatter(1, order.indices, dropped), -torch.inf)
