"""The loss of a linear head, whose gradients are ready when it is; logits live a part at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Sums = tuple[Tensor, Tensor, Tensor, Tensor]
"""Total, nats, correct targets and the largest logit of some rows."""

CPU_BLOCK, BLOCK = (2**10, 2**20), (2**12, 2**23)
"""So many rows at a time see one block of classes after another, of so many logits: what stays near, or what fills."""


class LinearLoss(torch.autograd.Function):
    """Sums over targets, of which the first has a gradient; see `anymodal.model.loss.token_loss`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        z_loss: float,
        size: int,
        with_gradient: bool,
    ) -> Sums:
        """Compute the sums and the gradients of `hidden`, `weight` and `bias`; `size` rows of logits are few enough.

        In half precision more rows than half of that go by blocks of classes, whose logits are made twice: a gradient
        of the weight that every few rows add to takes longer there than its products.
        """
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        wide = torch.promote_types(dtype, torch.float32)
        wanted = [with_gradient and needed for needed in ctx.needs_input_grad[:3]]
        new = torch.empty_like if len(targets) else torch.zeros_like
        ctx.gradients = [
            new(each, dtype=wide) if needed and each is not None else None
            for each, needed in zip((hidden, weight, bias), wanted, strict=True)
        ]
        ctx.dtypes = [None if each is None else each.dtype for each in (hidden, weight, bias)]
        x, blocks = hidden.to(dtype), dtype is not wide and 2 * len(targets) > size
        w, b = (weight, bias) if blocks else (weight.to(dtype), None if bias is None else bias.to(dtype))
        step, part = (_block(kind)[0], _by_classes) if blocks else (size, _by_rows)
        with torch.autocast(kind, enabled=False):
            parts = [
                part(x[i : i + step], w, b, targets[i : i + step], z_loss, _rows(ctx.gradients, i, step), first=i == 0)
                for i in range(0, max(len(targets), 1), step)
            ]
        sums = add_up(parts)
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Hand the gradients out."""
        assert ctx.gradients is not None, "the gradients of a loss are handed out once; compute the loss again"
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (
            None if gradient is None else gradient.mul_(upstream[0]).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None, None)


def figures(score: Tensor, top: Tensor, log_partition: Tensor, low: Tensor, z_loss: float) -> Sums:
    """Return the sums of rows whose targets are scored `score`, at most `top`, and no class below `low`."""
    nats = (log_partition - score).sum()
    total = nats + z_loss * log_partition.square().sum()
    correct = (score == top).sum()
    max_logit = torch.maximum(top.amax(), -low) if top.numel() else top.new_zeros(())
    return total, nats, correct, max_logit


def add_up(parts: Sequence[Sums]) -> Sums:
    """Return the sums of all parts."""
    total, nats, correct, max_logit = (torch.stack(column) for column in zip(*parts, strict=True))
    return total.sum(), nats.sum(), correct.sum(), max_logit.max()


def _rows(gradients: list[Tensor | None], start: int, size: int) -> list[Tensor | None]:
    """Return where a part adds to the gradients: its rows of the hidden states, and all of the weight and the bias."""
    hidden, weight, bias = gradients
    return [None if hidden is None else hidden[start : start + size], weight, bias]


def _by_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    z_loss: float,
    gradients: list[Tensor | None],
    *,
    first: bool,
) -> Sums:
    """Return the sums of rows and add to the gradients, which the `first` ones begin.

    The logits become, in their place, those of the loss.
    """
    scores = F.linear(x, weight, bias)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    index = targets[:, None]
    if not len(scores):
        return figures(scores, scores[:, :1], scores[:, :1], scores[:, 0], z_loss)
    top, low, score = scores.amax(-1, keepdim=True), scores.amin(), scores.gather(-1, index)
    share = scores.sub_(top).exp_()  # of the partition, times `divisor`
    divisor = share.sum(-1, keepdim=True)
    log_partition = top + divisor.log()
    if any(gradient is not None for gradient in gradients):
        for_hidden, for_weight, for_bias = gradients
        factor = (1 + 2 * z_loss * log_partition) / divisor
        share.scatter_add_(-1, index, -1 / factor)
        share = share.to(weight.dtype)
        if for_hidden is not None:
            for_hidden.copy_((share @ weight).to(for_hidden.dtype).mul_(factor))
        scaled = (x * factor).to(x.dtype)
        if for_weight is not None and for_weight.dtype == share.dtype:
            torch.addmm(for_weight, share.T, scaled, beta=0 if first else 1, out=for_weight)
        elif for_weight is not None:
            _add_to(for_weight, share.T @ scaled, first=first)
        if for_bias is not None:
            _add_to(for_bias, share.T @ factor.to(share.dtype).squeeze(-1), first=first)
    return figures(score, top, log_partition, low, z_loss)


def _by_classes(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    z_loss: float,
    gradients: list[Tensor | None],
    *,
    first: bool,
) -> Sums:
    """Do as `_by_rows` does, a block of classes after another: first for the partition, then for the gradients."""
    blocks = _Blocks(x, weight, bias, targets, max(1, _block(x.device.type)[1] // len(x)))
    top = x.new_full((len(x), 1), -torch.inf, dtype=blocks.wide)
    low, partition, score = -top.amin(), torch.zeros_like(top), torch.zeros_like(top)
    for block in blocks:
        scores, inside = block.scores, block.inside
        score.add_(scores.gather(-1, block.index).where(inside, 0))
        low, before = torch.minimum(low, scores.amin()), top
        top = torch.maximum(top, scores.amax(-1, keepdim=True))
        partition = partition * (before - top).exp() + scores.sub_(top).exp_().sum(-1, keepdim=True)
    log_partition = top + partition.log()
    for_hidden, for_weight, for_bias = gradients
    if any(gradient is not None for gradient in gradients):
        factor = 1 + 2 * z_loss * log_partition  # x times that would round it away
        for block in blocks:
            share = block.scores.sub_(log_partition).exp_().mul_(factor)
            share = share.scatter_add_(-1, block.index, -block.inside.to(share.dtype)).to(x.dtype)
            if for_hidden is not None:
                _add_to(for_hidden, share @ block.weight, first=block.span.start == 0)
            if for_weight is not None:
                _add_to(for_weight[block.span], share.T @ x, first=first)
            if for_bias is not None:
                _add_to(for_bias[block.span], share.sum(0, dtype=blocks.wide), first=first)
    return figures(score, top, log_partition, low, z_loss)


@dataclass(frozen=True, eq=False)
class _Block:
    """Some classes: where they are, their weight, logits, and the targets among them."""

    span: slice
    weight: Float[Tensor, "c d"]
    scores: Float[Tensor, "t c"]
    index: Int[Tensor, "t 1"]
    inside: Tensor


@dataclass(frozen=True, eq=False)
class _Blocks:
    """The classes of a head, `size` at a time, multiplied in the precision of `x`; logits are at least float32."""

    x: Float[Tensor, "t d"]
    weight: Float[Tensor, "v d"]
    bias: Float[Tensor, " v"] | None
    targets: Int[Tensor, " t"]
    size: int

    @property
    def wide(self) -> torch.dtype:
        """The precision of logits."""
        return torch.promote_types(self.x.dtype, torch.float32)

    def __iter__(self) -> Iterator[_Block]:
        for start in range(0, len(self.weight), self.size):
            span = slice(start, start + self.size)
            weight = self.weight[span].to(self.x.dtype)
            bias = None if self.bias is None else self.bias[span].to(self.x.dtype)
            index = self.targets[:, None] - start
            inside = (index >= 0) & (index < len(weight))
            scores = F.linear(self.x, weight, bias).to(self.wide)
            yield _Block(span, weight, scores, index.clamp(0, len(weight) - 1), inside)


def _block(kind: str) -> tuple[int, int]:
    return CPU_BLOCK if kind == "cpu" else BLOCK


def _add_to(gradient: Tensor, part: Tensor, *, first: bool) -> None:
    if first:
        gradient.copy_(part)
    else:
        gradient.add_(part)
