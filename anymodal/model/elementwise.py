"""Rotary positions and RMSNorm: what a block does to every number, beside its matrix products.

Both pass over memory more than they compute. Their gradients are written out here: autograd's own keep wide copies of
what was rounded, and pass over them two to three times as often.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Apply = Callable[..., Tensor]


def rotary_table(positions: Int[Tensor, "b n"], head_dim: int, theta: float) -> Float[Tensor, "2 b n r"]:
    """Return cosines and sines of the rotary angles (arXiv:2104.09864, equation 15), in float32 or wider."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64) / head_dim
    angles = positions[..., None].double() * theta**-exponents
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Float[Tensor, "b n heads k"], rotary: Float[Tensor, "2 b n 1 r"]) -> Float[Tensor, "b n heads k"]:
    """Rotate the halves of every head against each other (the layout of transformers' Llama), in the angles' type.

    There is no gradient of the angles.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return cast(Apply, _Rotation.apply)(x, rotary)
    return _rotated(x, rotary[0], rotary[1])


def rms_normalised(norm: nn.RMSNorm, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """Apply RMSNorm (arXiv:1910.07467, equation 4) before a product, in the wider type of `x` and the weight.

    The result has the type that autocast gives products, without it that of `x`.
    """
    kind, wide = x.device.type, torch.promote_types(x.dtype, norm.weight.dtype)
    if not torch.is_autocast_enabled(kind):
        return cast(Tensor, norm(x.to(wide))).to(x.dtype)
    dtype = torch.get_autocast_dtype(kind)
    if x.is_cpu and torch.is_grad_enabled():
        assert norm.eps is not None, "configurations give it"
        return cast(Apply, _RMSNorm.apply)(x, norm.weight, norm.eps, dtype)
    return cast(Tensor, norm(x.to(wide))).to(dtype)


class _Rotation(torch.autograd.Function):
    """A rotation, whose gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotary: Tensor) -> Tensor:
        ctx.save_for_backward(rotary)
        return _rotated(x, rotary[0], rotary[1])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (rotary,) = ctx.saved_tensors
        return _rotated(upstream[0], rotary[0], -rotary[1]), None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half, turned = x.shape[-1] // 2, torch.empty_like(x)
    first, second = x.to(cos.dtype).split(half, dim=-1)
    turned[..., :half] = (first * cos).addcmul_(second, sin, value=-1)
    turned[..., half:] = (second * cos).addcmul_(first, sin)
    return turned


class _RMSNorm(torch.autograd.Function):
    """RMSNorm that keeps what it read and one number a vector."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, weight.dtype))
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        gradient, normal = upstream[0].to(scale.dtype), x.to(scale.dtype) * scale
        of_weight = gradient * normal
        mean = torch.mv(of_weight.flatten(0, -2), weight.to(scale.dtype)).div_(x.shape[-1]).view_as(scale)
        of_x = (gradient * weight).addcmul_(normal, mean, value=-1).mul_(scale)
        return of_x.to(x.dtype), of_weight.flatten(0, -2).sum(0).to(weight.dtype), None, None
