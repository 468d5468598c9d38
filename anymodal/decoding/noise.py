"""Noise as a function of seed and position: the sampling law."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_GOLDEN_32 = -1640531527  # 0x9E3779B9
_MIX_32_1 = 0x7FEB352D
_MIX_32_2 = -2073254261  # 0x846CA68B

Noise = Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]
"""Computes `gumbel`."""


def gumbel(
    seeds: Int[Tensor, " b"], positions: Int[Tensor, " b"], ids: Int[Tensor, " v"], dtype: torch.dtype = torch.float64
) -> Float[Tensor, "b v"]:
    """Return standard Gumbel noise for every (seed, position, id), whatever else is in the batch.

    The argmax of logits plus this noise is a sample of their softmax (Gumbel-max). Seed and position give two keys by
    splitmix64 (Steele, Lea and Flood, OOPSLA 2014), which the cheaper lowbias32 (C. Wellons, hash-prospector) takes in
    turn with the id. The noise is -log(-log(1 - u)): small u make large noise, and small numbers are exact in float32.
    """
    key = _mix(_mix(seeds * _GOLDEN) + positions * _GOLDEN)[:, None]
    counter = ids.to(torch.int32)[None] * _GOLDEN_32 + _low(key)
    bits = _mix_32(_mix_32(counter) + _low(key >> 32)).bitwise_and_(0x7FFFFFFF)
    uniform = bits.to(dtype).mul_(2.0**-31).add_(2.0**-32).clamp_(max=1 - torch.finfo(dtype).eps)
    return gumbel_of(uniform)


def gumbel_of(uniform: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
    """Turn numbers in (0, 1) into Gumbel noise, where they lie."""
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _low(x: Tensor) -> Tensor:
    """Return the low 32 bits as a signed number."""
    return (((x & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000).to(torch.int32)


def _mix_32(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 16) & 0xFFFF)).mul_(_MIX_32_1)
    x = x.bitwise_xor_((x >> 15) & 0x1FFFF).mul_(_MIX_32_2)
    return x.bitwise_xor_((x >> 16) & 0xFFFF)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right, filling with zeros (torch's shift of signed numbers fills with the sign)."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
