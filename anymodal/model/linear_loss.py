"""The loss of a linear head, of whose logits only a part lives at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Sums = tuple[Tensor, Tensor, Tensor, Tensor]
"""Total, nats, correct targets and the largest logit of some rows."""
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Those of hidden states, weight and bias, as far as they are wanted."""

CPU_BLOCK, BLOCK = (2**10, 2**20), (2**12, 2**23)
"""About so many rows at a time see one block of classes after another, of so many logits: what stays near, or fills."""
ROUND, ROUND_CLASSES = 32, 64  # what products are fastest with multiples of


def linear_losses(
    hidden: Float[Tensor, "t d"],
    weight: Float[Tensor, "v d"],
    bias: Float[Tensor, " v"] | None,
    targets: Int[Tensor, " t"],
    counts: Sequence[int],
    *,
    z_loss: float,
    size: int,
) -> list[Sums]:
    """Sum over the first `counts[0]` targets, the next `counts[1]`, and so on; `size` rows of logits may live at once.

    The first of the sums has a gradient. In half precision more rows than half of `size` go by blocks of classes: a
    gradient of the weight that every few rows add to takes longer there than its products.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    if dtype is not torch.promote_types(dtype, torch.float32) and 2 * len(targets) > size:
        by_classes = cast(Callable[..., Sums], LossByClasses.apply)
        columns = by_classes(hidden, weight, bias, targets, tuple(counts), z_loss, dtype)
        return [cast(Sums, row) for row in zip(*(column.unbind() for column in columns), strict=True)]
    by_rows = cast(Callable[..., Sums], LossByRows.apply)
    if not torch.is_grad_enabled():  # gradients would be made beside the loss
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    parts = zip(hidden.split(list(counts)), targets.split(list(counts)), strict=True)
    none = hidden.new_zeros(0, 1, dtype=torch.float32)
    return [  # where others have targets, those of none need no gradient of zeros
        by_rows(rows, weight, bias, wanted, z_loss, size, dtype)
        if len(wanted) or not len(targets)
        else figures(none, none, none, none, z_loss)
        for rows, wanted in parts
    ]


class LossByRows(torch.autograd.Function):
    """Logits of a few rows at a time are made once: gradients are ready when the loss is."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        z_loss: float,
        size: int,
        dtype: torch.dtype,
    ) -> Sums:
        """Compute the sums and the gradients by products in `dtype`."""
        inputs = (hidden, weight, bias)
        ctx.gradients = _new(inputs, ctx.needs_input_grad[:3], dtype)
        ctx.dtypes = [None if each is None else each.dtype for each in inputs]
        x, w, b = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            sums = add_up([
                _by_rows(x[span], w, b, targets[span], z_loss, _at(span, ctx.gradients), first=span.start == 0)
                for span in _spans(len(targets), size)
            ])  # fmt: skip
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


class LossByClasses(torch.autograd.Function):
    """Logits of a block of classes at a time are made for the loss, and again for the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        counts: tuple[int, ...],
        z_loss: float,
        dtype: torch.dtype,
    ) -> Sums:
        """Compute the sums of every count of targets by products in `dtype`."""
        x = hidden.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            found = [_partition(_Blocks(x[span], weight, bias, targets[span])) for span in _row_spans(x)]
        columns = [torch.cat(column) for column in zip(*found, strict=True)]
        ctx.save_for_backward(x, weight, bias, targets, columns[2])
        ctx.counts, ctx.z_loss, ctx.dtype = counts, z_loss, hidden.dtype
        parts = zip(*(column.split(list(counts)) for column in columns), strict=True)
        found = [figures(score, top, partition, low, z_loss) for score, top, partition, low in parts]
        total, nats, correct, max_logit = zip(*found, strict=True)
        sums = torch.stack(total), torch.stack(nats), torch.stack(correct), torch.stack(max_logit)
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Make the gradients, of which each target's is as much as the loss that it is part of."""
        x, weight, bias, targets, log_partition = ctx.saved_tensors
        gradients = _new((x, weight, bias), ctx.needs_input_grad[:3], x.dtype)
        scale = torch.cat([each.expand(count) for each, count in zip(upstream[0], ctx.counts, strict=True)])[:, None]
        factor = scale * (1 + 2 * ctx.z_loss * log_partition)  # in float32: x times that would round it away
        with torch.autocast(x.device.type, enabled=False):
            for span in _row_spans(x):
                blocks = _Blocks(x[span], weight, bias, targets[span])
                rows = (log_partition[span], factor[span], scale[span])
                _by_classes(blocks, *rows, _at(span, gradients), first=span.start == 0)
        dtypes = (ctx.dtype, weight.dtype, weight.dtype)
        found = (None if each is None else each.to(dtype) for each, dtype in zip(gradients, dtypes, strict=True))
        return (*found, None, None, None, None)


def figures(score: Tensor, top: Tensor, log_partition: Tensor, low: Tensor, z_loss: float) -> Sums:
    """Return the sums of rows whose targets are scored `score`, at most `top`, and no class below `low`."""
    nats = (log_partition - score).sum()
    total = nats + z_loss * log_partition.square().sum()
    correct = (score == top).sum()
    max_logit = torch.maximum(top.amax(), -low.amin()) if top.numel() else top.new_zeros(())
    return total, nats, correct, max_logit


def add_up(parts: Sequence[Sums]) -> Sums:
    """Return the sums of all parts."""
    total, nats, correct, max_logit = (torch.stack(column) for column in zip(*parts, strict=True))
    return total.sum(), nats.sum(), correct.sum(), max_logit.max()


def _new(like: Sequence[Tensor | None], wanted: Sequence[bool], dtype: torch.dtype) -> Gradients:
    """Return where gradients go, in no less than float32: of nothing they are zero, all else is written."""
    first, wide = like[0], torch.promote_types(dtype, torch.float32)
    new = torch.empty_like if first is not None and len(first) else torch.zeros_like
    pairs = zip(like, wanted, strict=True)
    hidden, weight, bias = (new(each, dtype=wide) if want and each is not None else None for each, want in pairs)
    return hidden, weight, bias


def _at(span: slice, gradients: Gradients) -> Gradients:
    """Return where a part adds to the gradients: its rows of the hidden states, and all of the weight and the bias."""
    hidden, weight, bias = gradients
    return None if hidden is None else hidden[span], weight, bias


def _spans(count: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, max(count, 1), step)]


def _row_spans(x: Tensor) -> list[slice]:
    """Return parts of about as many rows as see a block together."""
    step = -(-len(x) // max(1, round(len(x) / _block(x)[0])))
    return _spans(len(x), step + -step % ROUND)


def _block(x: Tensor) -> tuple[int, int]:
    return CPU_BLOCK if x.device.type == "cpu" else BLOCK


def _by_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    z_loss: float,
    gradients: Gradients,
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


def _partition(blocks: "_Blocks") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return of every row the logit of its target, the top one, the log partition, and the lowest logit."""
    top = blocks.x.new_full((len(blocks.x), 1), -torch.inf, dtype=blocks.wide)
    low, partition, score = -top, torch.zeros_like(top), torch.zeros_like(top)
    for block in blocks:
        scores, before = block.scores, top
        score.add_(scores.gather(-1, block.index).where(block.inside, 0))
        low = torch.minimum(low, scores.amin(-1, keepdim=True))
        top = torch.maximum(top, scores.amax(-1, keepdim=True))
        partition = partition * (before - top).exp() + scores.sub_(top).exp_().sum(-1, keepdim=True)
    return score, top, top + partition.log(), low


def _by_classes(
    blocks: "_Blocks", log_partition: Tensor, factor: Tensor, scale: Tensor, gradients: Gradients, *, first: bool
) -> None:
    """Add what the rows of `blocks` give to the gradients, which the `first` ones begin.

    The probabilities count `factor` times, the targets `scale` times.
    """
    for_hidden, for_weight, for_bias = gradients
    for block in blocks:
        share = block.scores.sub_(log_partition).exp_().mul_(factor)
        share = share.scatter_add_(-1, block.index, -(block.inside * scale)).to(blocks.x.dtype)
        if for_hidden is not None:
            _add_to(for_hidden, share @ block.weight, first=block.span.start == 0)
        if for_weight is not None:
            _add_to(for_weight[block.span], share.T @ blocks.x, first=first)
        if for_bias is not None:
            _add_to(for_bias[block.span], share.sum(0, dtype=blocks.wide), first=first)


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
    """The classes of a head, some at a time, multiplied in the precision of `x`; logits are at least float32."""

    x: Float[Tensor, "t d"]
    weight: Float[Tensor, "v d"]
    bias: Float[Tensor, " v"] | None
    targets: Int[Tensor, " t"]

    @property
    def size(self) -> int:
        """How many classes a block has."""
        size = max(1, _block(self.x)[1] // len(self.x))
        return size - size % ROUND_CLASSES if size > ROUND_CLASSES else size

    @property
    def wide(self) -> torch.dtype:
        """The precision of logits."""
        return torch.promote_types(self.x.dtype, torch.float32)

    def __iter__(self) -> Iterator[_Block]:
        for span in _spans(len(self.weight), self.size):
            weight = self.weight[span].to(self.x.dtype)
            bias = None if self.bias is None else self.bias[span].to(self.x.dtype)
            index = self.targets[:, None] - span.start
            inside = (index >= 0) & (index < len(weight))
            scores = F.linear(self.x, weight, bias).to(self.wide)
            yield _Block(span, weight, scores, index.clamp(0, len(weight) - 1), inside)


def _add_to(gradient: Tensor, part: Tensor, *, first: bool) -> None:
    if first:
        gradient.copy_(part)
    else:
        gradient.add_(part)
