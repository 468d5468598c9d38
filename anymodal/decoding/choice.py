"""From logits to an id: guidance, temperature, top-k, top-p, and the noise of a row."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anymodal.decoding.config import SamplingConfig
from anymodal.decoding.noise import gumbel


class SamplingError(ValueError):
    """A row has no id to choose: its logits are not numbers, or the grammar allows none of them."""


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
    allowed: Bool[Tensor, "b v"],
    settings: Sequence[SamplingConfig],
    seeds: Int[Tensor, " b"],
    positions: Int[Tensor, " b"],
) -> Int[Tensor, " b"]:
    """Choose the next id of every row.

    Raises:
        SamplingError: the logits of a row are not numbers, or no allowed id has one.
    """
    wide = logits.double().masked_fill(~allowed, -torch.inf)
    best = wide.max(dim=-1).values
    for row in torch.nonzero(~torch.isfinite(best)).flatten().tolist():
        kind = "not numbers" if bool(torch.isnan(wide[row]).any()) else "no finite number among the allowed ids"
        raise SamplingError(f"the logits of row {row} hold {kind}; check the weights, or compute in float32.")
    temperature = wide.new_tensor([each.temperature for each in settings])[:, None]
    sampled = temperature > 0
    scaled = torch.where(sampled, wide / temperature.clamp(min=1e-6), wide)
    if any(each.top_k for each in settings):
        scaled = _keep_top_k(scaled, [each.top_k for each in settings])
    if any(each.top_p < 1 for each in settings):
        scaled = _keep_top_p(scaled, wide.new_tensor([each.top_p for each in settings]))
    ids = torch.arange(logits.shape[-1], device=logits.device)
    noise = gumbel(seeds, positions, ids) if bool(sampled.any()) else torch.zeros_like(scaled)
    return torch.where(sampled, scaled + noise, scaled).argmax(dim=-1)


def _keep_top_k(logits: Float[Tensor, "b v"], counts: Sequence[int]) -> Float[Tensor, "b v"]:
    size = logits.shape[-1]
    places = torch.tensor([min(count, size) - 1 if count else size - 1 for count in counts], device=logits.device)
    threshold = logits.sort(dim=-1, descending=True).values.gather(1, places[:, None])
    return logits.masked_fill(logits < threshold, -torch.inf)


def _keep_top_p(logits: Float[Tensor, "b v"], shares: Float[Tensor, " b"]) -> Float[Tensor, "b v"]:
    order = logits.sort(dim=-1, descending=True)
    probabilities = order.values.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = (before >= shares[:, None]).scatter(1, order.indices, before >= shares[:, None])
    return logits.masked_fill(dropped, -torch.inf)
