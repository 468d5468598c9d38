"""The guard against gradients that are no numbers: their step changes nothing, and several in a row end the run.

It works on the device. What optimizers have for gradient scalers tells them to leave a step out, and how many were left
out in a row is read a step later, when the host no longer waits for it, or when a checkpoint is to be written.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anymodal.learning.distributed import whole_tensor

MAX_BAD_STEPS = 5


def clip_or_skip(optimizer: Any, limit: float) -> Float[Tensor, ""]:
    """Clip the gradients of a fused optimizer by their global norm, or let it leave its next step out; return the norm.

    A step is left out where the norm is not finite: weights and averages stay, to the bit.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = whole_tensor(torch.nn.utils.clip_grad_norm_(parameters, limit))
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Lightning's wrapper would keep it to itself
    optimizer.found_inf = (~torch.isfinite(norm)).float()
    return norm


class BadSteps:
    """How many steps in a row were left out.

    >>> bad = BadSteps()
    >>> for norm in (1.0, float("nan"), float("inf")):
    ...     bad.add(torch.tensor(norm))
    >>> bad.last, bad.in_a_row
    (tensor(True), 2)
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.last: Bool[Tensor, ""] = torch.tensor(False)
        self._count = self._sent = torch.zeros((), dtype=torch.long)
        self._arrived: torch.cuda.Event | None = None

    def add(self, norm: Float[Tensor, ""]) -> None:
        """Count a step by the norm of its gradient; the host does not wait for it."""
        self.last = ~torch.isfinite(norm)
        if self._count.device != norm.device:
            self._count = torch.zeros_like(self.last, dtype=torch.long)
        self._count = (self._count + 1) * self.last
        self._sent = self._count.to("cpu", non_blocking=True)
        if norm.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    @property
    def in_a_row(self) -> int:
        """The number up to the last step that was counted, whose end the host waits for."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return int(self._sent)

    def check(self, step: int) -> None:
        """Check how many there are.

        Raises:
            ValueError: too many; `step` is where the run stands.
        """
        if self.in_a_row >= MAX_BAD_STEPS:
            raise ValueError(
                f"the gradient was not finite in {MAX_BAD_STEPS} steps in a row (up to step {step}); lower the "
                "learning rate, turn qk_norm on, and resume from the last checkpoint."
            )
