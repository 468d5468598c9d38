"""What a step has chosen, on its way from the device to the host."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from anymodal.decoding.heads import Live


@dataclass(frozen=True)
class Chosen:
    """Ids, faults, states and kinds for the requests of a step, which may still be on their way.

    >>> Chosen.of([], torch.tensor([[7], [0], [2], [1]])).read()
    [[7, 0, 2, 1]]
    """

    lives: Sequence[Live]
    bundle: Int[Tensor, "4 b"]
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, lives: Sequence[Live], bundle: Int[Tensor, "4 b"]) -> "Chosen":
        """Send it, without waiting and without queueing behind the step that follows."""
        if bundle.device.type != "cuda":
            return cls(list(lives), bundle, None)
        told, arrived = bundle.to("cpu", non_blocking=True), torch.cuda.Event()
        arrived.record()
        return cls(list(lives), told, arrived)

    def read(self) -> list[list[int]]:
        """Return ids, faults, states and kinds, a row a request."""
        if self.arrived is not None:
            self.arrived.synchronize()
        rows: list[list[int]] = self.bundle.T.tolist()
        return rows
