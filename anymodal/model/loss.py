"""Token losses that never hold the logits of a whole batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**23


@dataclass(frozen=True)
class TokenLoss:
    """Sums over the targets of one modality, in float32, so that the divisor can be taken over all ranks and steps.

    `total` is what is minimised: `nats`, the cross entropy, and the z-loss. It alone has a gradient. `correct` counts
    the targets that no id is scored above.
    """

    total: Float[Tensor, ""]
    nats: Float[Tensor, ""]
    count: Int[Tensor, ""]
    correct: Int[Tensor, ""]
    max_logit: Float[Tensor, ""]

    @classmethod
    def none(cls, device: torch.device) -> "TokenLoss":
        """Return the loss of no targets."""
        zero, count = torch.zeros((), device=device), torch.zeros((), dtype=torch.long, device=device)
        return cls(total=zero, nats=zero, count=count, correct=count, max_logit=zero - torch.inf)

    @property
    def mean(self) -> Float[Tensor, ""]:
        """What is minimised, a target; zero where there is none."""
        return self.total / self.count.clamp(min=1)


def token_loss(
    head: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "t d"],
    targets: Int[Tensor, " t"],
    num_classes: int,
    z_loss: float = 0.0,
) -> TokenLoss:
    """Sum the cross entropy of `head(hidden)` against `targets`, and `z_loss` times the squared log partitions.

    Logits live a chunk at a time (z-loss: arXiv:2204.02311 section 5). A linear head, or the last layer of a sequential
    one, makes its gradients beside the loss, so that nothing is computed twice; they can be asked for once. Another
    head makes its logits again backwards.
    """
    size = max(1, CHUNK_LOGITS // num_classes)
    if type(head) is nn.Sequential and type(head[-1]) is nn.Linear:  # a subclass may compute something else
        hidden, head = head[:-1](hidden), head[-1]
    if type(head) is nn.Linear:
        with_gradient = torch.is_grad_enabled()
        apply = cast(Callable[..., tuple[Tensor, ...]], _LinearLoss.apply)
        sums = apply(hidden, head.weight, head.bias, targets, z_loss, size, with_gradient)
    else:
        sums = _recomputed(head, hidden, targets, z_loss, size)
    total, nats, correct, max_logit = sums
    count = torch.full((), len(targets), device=hidden.device)
    return TokenLoss(total=total, nats=nats.detach(), count=count, correct=correct, max_logit=max_logit)


class _LinearLoss(torch.autograd.Function):
    """The loss of a linear head, whose gradients are ready when it is."""

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
    ) -> tuple[Tensor, ...]:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        wide = torch.promote_types(dtype, torch.float32)
        x, w, b = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        wanted = [with_gradient and needed for needed in ctx.needs_input_grad[:3]]
        new = torch.empty_like if len(targets) else torch.zeros_like
        ctx.gradients = [
            new(each, dtype=wide) if needed and each is not None else None
            for each, needed in zip((hidden, weight, bias), wanted, strict=True)
        ]
        ctx.dtypes = [None if each is None else each.dtype for each in (hidden, weight, bias)]
        with torch.autocast(kind, enabled=False):
            chunks = [
                _linear_chunk(
                    x[i : i + size], w, b, targets[i : i + size], z_loss, _rows(ctx.gradients, i, size), first=i == 0
                )
                for i in range(0, max(len(targets), 1), size)
            ]
        sums = _add_up(chunks)
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "the gradients of a loss are handed out once; compute the loss again"
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (
            None if gradient is None else gradient.mul_(upstream[0]).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None, None)


def _rows(gradients: list[Tensor | None], start: int, size: int) -> list[Tensor | None]:
    """Return where a chunk adds to the gradients: its rows of the hidden states, and all of the weight and the bias."""
    hidden, weight, bias = gradients
    return [None if hidden is None else hidden[start : start + size], weight, bias]


def _linear_chunk(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    z_loss: float,
    gradients: list[Tensor | None],
    *,
    first: bool,
) -> tuple[Tensor, ...]:
    """Return the sums of a chunk and add to its gradients, which the `first` one begins.

    The logits become, in their place, those of the loss.
    """
    scores = F.linear(x, weight, bias)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    index = targets[:, None]
    if not len(scores):
        return _figures(scores, scores[:, :1], scores[:, :1], scores[:, 0], z_loss)
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
    return _figures(score, top, log_partition, low, z_loss)


def _add_to(gradient: Tensor, part: Tensor, *, first: bool) -> None:
    if first:
        gradient.copy_(part)
    else:
        gradient.add_(part)


def _recomputed(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, z_loss: float, size: int
) -> tuple[Tensor, ...]:
    def chunk(x: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
        scores = head(x)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        top = scores.detach().amax(-1, keepdim=True) if scores.numel() else scores[:, :1].detach()
        low = scores.detach().amin() if scores.numel() else top
        return _figures(scores.gather(-1, wanted[:, None]), top, scores.logsumexp(-1, keepdim=True), low, z_loss)

    chunks = [(hidden[i : i + size], targets[i : i + size]) for i in range(0, max(len(targets), 1), size)]
    if len(chunks) == 1 or not torch.is_grad_enabled():
        return _add_up([chunk(*each) for each in chunks])
    return _add_up([cast(tuple[Tensor, ...], checkpoint(chunk, *each, use_reentrant=False)) for each in chunks])


def _figures(score: Tensor, top: Tensor, log_partition: Tensor, low: Tensor, z_loss: float) -> tuple[Tensor, ...]:
    """Return total, nats, correct and the largest logit of a chunk, whose targets are scored `score`."""
    nats = (log_partition - score).sum()
    total = nats + z_loss * log_partition.square().sum()
    correct = (score == top).sum()
    max_logit = torch.maximum(top.amax(), -low) if top.numel() else top.new_zeros(())
    return total, nats, correct, max_logit


def _add_up(chunks: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    total, nats, correct, max_logit = (torch.stack(column) for column in zip(*chunks, strict=True))
    return total.sum(), nats.sum(), correct.sum(), max_logit.max()
