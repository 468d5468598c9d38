"""The moving average of the weights, which is what a run validates and saves."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks.weight_averaging import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Averaging(WeightAveraging):
    """Average the weights after every step by an exponential decay.

    Buffers hold ids and codebooks: they are copied, an average of them would be none. What does not change is kept to
    the bit, as Lightning's EMAWeightAveraging does not.
    """

    def __init__(self, decay: float) -> None:
        """Average with `decay` in (0, 1)."""
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the weights; the count of steps, which the host reads in each of them, stays on the host."""
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()
