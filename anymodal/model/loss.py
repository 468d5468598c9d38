"""Token losses that never hold the logits of a whole batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anymodal.model.linear_loss import Sums, add_up, figures, linear_losses

CHUNK_LOGITS = 2**24


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
    """Return the loss of targets of one modality, see `token_losses`."""
    (loss,) = token_losses(head, hidden, targets, [len(targets)], num_classes, z_loss)
    return loss


def token_losses(
    head: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "t d"],
    targets: Int[Tensor, " t"],
    counts: Sequence[int],
    num_classes: int,
    z_loss: float = 0.0,
) -> list[TokenLoss]:
    """Sum the cross entropy of `head(hidden)` against `targets`, and `z_loss` times the squared log partitions.

    The first `counts[0]` targets are of one modality, the next `counts[1]` of another, and so on. Logits live a chunk
    at a time (z-loss: arXiv:2204.02311 section 5). The gradients of a linear head, or of the last layer of a sequential
    one, are made beside the loss, of which they can then be asked for once, or of logits that are made again backwards,
    as those of another head are: whichever is faster.
    """
    size = max(1, CHUNK_LOGITS // num_classes)
    if type(head) is nn.Sequential and type(head[-1]) is nn.Linear:  # a subclass may compute something else
        hidden, head = head[:-1](hidden), head[-1]
    if type(head) is nn.Linear:
        found = linear_losses(hidden, head.weight, head.bias, targets, counts, z_loss=z_loss, size=size)
    else:
        parts = zip(hidden.split(list(counts)), targets.split(list(counts)), strict=True)
        found = [_recomputed(head, rows, wanted, z_loss, size) for rows, wanted in parts]
    return [
        TokenLoss(total, nats.detach(), torch.full((), count, device=hidden.device), correct, max_logit)
        for (total, nats, correct, max_logit), count in zip(found, counts, strict=True)
    ]


def _recomputed(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, z_loss: float, size: int) -> Sums:
    def chunk(x: Tensor, wanted: Tensor) -> Sums:
        scores = head(x)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        top = scores.detach().amax(-1, keepdim=True) if scores.numel() else scores[:, :1].detach()
        low = scores.detach().amin() if scores.numel() else top
        return figures(scores.gather(-1, wanted[:, None]), top, scores.logsumexp(-1, keepdim=True), low, z_loss)

    chunks = [(hidden[i : i + size], targets[i : i + size]) for i in range(0, max(len(targets), 1), size)]
    if len(chunks) == 1 or not torch.is_grad_enabled():
        return add_up([chunk(*each) for each in chunks])
    return add_up([cast(Sums, checkpoint(chunk, *each, use_reentrant=False)) for each in chunks])
