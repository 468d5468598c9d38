"""Token losses that never hold the logits of a whole batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**24


@dataclass(frozen=True)
class TokenLoss:
    """Sums over the targets of one modality, in float32, so that the divisor can be taken over all ranks and steps.

    `total` is the cross entropy in nats, `z_total` the squared log partition (z-loss, arXiv:2204.02311 section 5).
    """

    total: Float[Tensor, ""]
    z_total: Float[Tensor, ""]
    count: Int[Tensor, ""]
    correct: Int[Tensor, ""]
    max_logit: Float[Tensor, ""]

    @property
    def mean(self) -> Float[Tensor, ""]:
        """Nats a target; zero where there is none."""
        return self.total / self.count.clamp(min=1)


def token_loss(
    head: Callable[[Tensor], Tensor], hidden: Float[Tensor, "t d"], targets: Int[Tensor, " t"], num_classes: int
) -> TokenLoss:
    """Sum the cross entropy of `head(hidden)` against `targets`, in chunks whose logits are made again backwards."""
    size = max(1, CHUNK_LOGITS // num_classes)
    chunks = [(hidden[i : i + size], targets[i : i + size]) for i in range(0, max(len(targets), 1), size)]
    if len(chunks) == 1 or not torch.is_grad_enabled():
        sums = [_chunk_loss(head, *chunk) for chunk in chunks]
    else:
        sums = [checkpoint(_chunk_loss, head, *chunk, use_reentrant=False) for chunk in chunks]
    total, z_total, correct, max_logit = (torch.stack(column) for column in zip(*sums, strict=True))
    count = torch.tensor(len(targets), device=hidden.device)
    return TokenLoss(
        total=total.sum(), z_total=z_total.sum(), count=count, correct=correct.sum(), max_logit=max_logit.max()
    )


def _chunk_loss(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    z = logits.logsumexp(-1)
    total = (z - logits.gather(-1, targets[:, None]).squeeze(-1)).sum()
    with torch.no_grad():
        correct = (logits.argmax(-1) == targets).sum()
        max_logit = logits.abs().max() if logits.numel() else logits.new_zeros(())
    return total, z.square().sum(), correct, max_logit
