"""Which codes of a codebook are in use, and whether so few are that it has collapsed."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

MEMORY_STEPS = 50
MEMORY_USES = 20  # of every code on average: a step may hold fewer codes than the codebook
DEAD_SHARE = 0.01  # of the mean use
COLLAPSED_PERPLEXITY = 0.1  # of the number of codes
COLLAPSED_DEAD = 0.5


class CodebookUsage(nn.Module):
    """Count lately used codes; the counts are part of a checkpoint, as what is done about dead codes depends on them.

    >>> usage = CodebookUsage(4)
    >>> usage.add(torch.tensor([40, 40, 0, 0]))
    >>> usage.dead.tolist(), usage.perplexity
    ([False, False, True, True], 2.0)
    """

    counts: Tensor

    def __init__(self, codebook_size: int) -> None:
        """Begin with no use of any."""
        super().__init__()
        self.register_buffer("counts", torch.zeros(codebook_size))

    @torch.no_grad()
    def add(self, counts: Int[Tensor, " k"]) -> None:
        """Add how often a step used every code, and forget a little of the steps before; no device is waited for."""
        self.counts *= 1 - (counts.sum() / (MEMORY_USES * len(self.counts))).clamp(max=1 / MEMORY_STEPS)
        self.counts += counts

    @property
    def perplexity(self) -> float:
        """The number of codes that, used equally often, would carry as much: from 1 to their number."""
        share = (self.counts / self.counts.sum().clamp(min=1)).double()
        return round(float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum())), 6)

    @property
    def dead(self) -> Bool[Tensor, " k"]:
        """Which codes are hardly ever used."""
        return self.counts < DEAD_SHARE * self.counts.mean()

    @property
    def settled(self) -> bool:
        """Whether enough was counted to tell."""
        return bool(self.counts.sum() >= MEMORY_USES / 2 * len(self.counts))

    @property
    def collapsed(self) -> bool:
        """Whether the codebook carries much less than its number of codes could."""
        size = len(self.counts)
        few = self.perplexity < COLLAPSED_PERPLEXITY * size or float(self.dead.float().mean()) >= COLLAPSED_DEAD
        return self.settled and few
