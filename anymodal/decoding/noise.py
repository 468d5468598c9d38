"""Noise as a function of seed and position: the sampling law."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def gumbel(seeds: Int[Tensor, " b"], positions: Int[Tensor, " b"], ids: Int[Tensor, " v"]) -> Float[Tensor, "b v"]:
    """Return standard Gumbel noise in float64 for every (seed, position, id), whatever else is in the batch.

    The argmax of logits plus this noise is a sample of their softmax (Gumbel-max). Counters are hashed by splitmix64
    (Steele, Lea and Flood, OOPSLA 2014).
    """
    counter = _mix(_mix(seeds * _GOLDEN) + positions * _GOLDEN)[:, None] + (ids[None] + 1) * _GOLDEN
    bits = (_mix(counter) >> 11) & (2**53 - 1)
    uniform = (bits.double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform))


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right, filling with zeros (torch's shift of signed numbers fills with the sign)."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
