"""Attention of packed documents in one call, by torch's kernel for sequences of any length on NVIDIA GPUs.

Other devices and float32 attend by groups of documents (`Segments`), with the same result up to rounding.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16)
MOST_HEAD_DIM, HEAD_DIM_STEP, CAPABILITY = 256, 8, (8, 0)  # what FlashAttention-2 takes (arXiv:2307.08691)


@cache
def find_kernel() -> Callable[..., Tensor] | None:
    """Return torch's kernel, where this version has it with causal windows and grouped heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  (since torch 2.10)
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters.keys()
    return cast(Callable[..., Tensor], varlen_attn) if {"window_size", "enable_gqa"} <= known else None


def takes(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Tell whether a kernel takes such queries."""
    if device.type != "cuda" or dtype not in DTYPES or head_dim > MOST_HEAD_DIM or head_dim % HEAD_DIM_STEP:
        return False
    return torch.cuda.get_device_capability(device) >= CAPABILITY and find_kernel() is not None


def attend(
    q: Float[Tensor, "n heads k"],
    k: Float[Tensor, "n kv_heads k"],
    v: Float[Tensor, "n kv_heads k"],
    edges: Int[Tensor, " d"],
    longest: int,
) -> Float[Tensor, "n heads k"]:
    """Attend causally within documents, which stand one behind the other between `edges`."""
    kernel = find_kernel()
    assert kernel is not None, "ask `takes` first"
    grouped = q.shape[1] != k.shape[1]
    return kernel(q, k, v, edges, edges, longest, longest, window_size=(-1, 0), enable_gqa=grouped)
