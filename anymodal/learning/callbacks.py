"""What a run shows and how it stops."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from anymodal.learning.accumulation import StepBatch
from anymodal.learning.checkpoints import StepCheckpoints, validates
from anymodal.learning.distributed import count_over_ranks, max_over_ranks
from anymodal.learning.flops import StepFlops, peak_flops
from anymodal.learning.objective import Objective, UnifiedObjective
from anymodal.learning.optimizer import rate_at

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopAtBorder(pl.Callback):
    """On Ctrl-C or SIGTERM finish the step, save, and stop; the second Ctrl-C stops at once."""

    def __init__(self) -> None:
        """Wait for a signal."""
        self.received: int | None = None

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put the signal handlers of the caller back, however the run ends."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen from here on: Lightning's own handler, which is in place by now, would leave a validation at once."""
        if threading.current_thread() is not threading.main_thread():
            log.warning("not in the main thread: Ctrl-C will not save a checkpoint here.")
            return
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask the trainer to stop, with no validation but that of this step; `StepCheckpoints` comes behind and saves.

        Processes hear of a signal in different steps: all stop when one has.
        """
        if trainer.world_size > 1:
            self.received = int(max_over_ranks(torch.tensor(self.received or 0))) or None  # of hosts: no device waits
        if self.received is not None:
            trainer.should_stop = True
            if not validates(trainer, batch_idx):  # which a run that resumes would leave out
                trainer.limit_val_batches = 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        log.warning("stopping at the end of this step; the same command resumes.")


class Speed(pl.Callback):
    """Log tokens a second of all processes, the share of time that training waited for data, and MFU."""

    def __init__(self) -> None:
        """Start the clocks."""
        self._last_end = time.perf_counter()
        self._before = self._total = self._flops = 0.0
        self._tokens = 0
        self._cost: StepFlops | None = None
        self._peak = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn what the device can do, and leave out what came before the first step."""
        if isinstance(pl_module, UnifiedObjective):
            dtype = torch.bfloat16 if str(trainer.precision).startswith("bf16") else torch.float32
            self._cost, self._peak = StepFlops.of(pl_module.model), peak_flops(pl_module.device, dtype)
        self._last_end, self._before = time.perf_counter(), _waited(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the validation out."""
        self._last_end = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count tokens, or pictures where a batch has no tokens."""
        now = time.perf_counter()
        self._total += now - self._last_end
        self._last_end = now
        counts_tokens = isinstance(batch, StepBatch)
        self._tokens += batch.host.num_tokens if counts_tokens else len(batch)
        if self._cost is not None:
            self._flops += float(self._cost.of_batch(batch.host, cast(UnifiedObjective, pl_module).code_of))
        if trainer.global_step % cast(Any, trainer).log_every_n_steps == 0 and self._total > 0:
            unit = "tokens_per_second" if counts_tokens else "pictures_per_second"
            shown = {unit: self._tokens * trainer.world_size / self._total}
            waited = _waited(trainer)
            shown["data_wait_share"], self._before = (waited - self._before) / self._total, waited
            if self._cost is not None:
                shown["mfu"] = self._flops / self._total / self._peak
            for name, value in shown.items():  # Lightning reads what a bar shows in every step: it stays on the host
                pl_module.log(name, torch.tensor(value), prog_bar=True)
            self._total = self._flops = 0.0
            self._tokens = 0


def _waited(trainer: pl.Trainer) -> float:
    """Return the seconds that training has waited for its loader."""
    return float(getattr(trainer.train_dataloader, "waited_s", 0.0))


class Gauges(pl.Callback):
    """Log learning rates, samples skipped so far by reason, and how many codes training reads (perplexity)."""

    def __init__(self) -> None:
        """Count from zero."""
        self._codes: Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the codes of a batch, and log at intervals."""
        unified = pl_module if isinstance(pl_module, UnifiedObjective) else None
        if unified is not None:
            codes = unified.code_of[batch.host.ids].flatten()
            if self._codes is None:
                self._codes = torch.zeros(len(unified.model.image_ids))
            self._codes.scatter_add_(0, codes.clamp(min=0), (codes >= 0).to(self._codes.dtype))
        if trainer.global_step % cast(Any, trainer).log_every_n_steps or not isinstance(pl_module, Objective):
            return
        config = pl_module.optimizer_config
        rate = config.learning_rate * rate_at(trainer.global_step - 1, config, pl_module.run.steps)
        pl_module.log("learning_rate", rate)
        for part, factor in unified.stage.rates.items() if unified is not None else ():
            pl_module.log(f"learning_rate_{part}", rate * factor)
        for reason, count in count_over_ranks(cast(Any, trainer).datamodule.skipped).items():
            pl_module.log(f"skipped_{reason.replace(' ', '_')}", float(count))
        if self._codes is not None:
            share = self._codes / self._codes.sum().clamp(min=1)
            pl_module.log("codebook_perplexity", torch.special.entr(share).sum().exp())
            self._codes.zero_()


class Bar(RichProgressBar):
    """Show Lightning's bar, with the metrics of the last line of the logs: Lightning's reads them in every step."""

    def __init__(self) -> None:
        """Show nothing yet."""
        super().__init__()
        self._read: Any = {}

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        """Return the metrics, which are read from the device at the interval of the logs."""
        if not self._read or trainer.global_step % cast(Any, trainer).log_every_n_steps == 0:
            self._read = super().get_metrics(trainer, pl_module)
        return self._read


class ProgressLines(pl.Callback):
    """Print a line at intervals to the log, where no terminal shows a bar."""

    def __init__(self, every_s: float = 10.0) -> None:
        """Print at most every `every_s` seconds."""
        self.every_s = every_s
        self._start = self._last = 0.0
        self._first = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start = self._last = time.perf_counter()
        self._first = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print step, time left and the metrics that a bar would show."""
        now, step, steps = time.perf_counter(), trainer.global_step, trainer.max_steps
        if now - self._last < self.every_s and step < steps:
            return
        self._last = now
        left = (now - self._start) / max(1, step - self._first) * (steps - step)
        shown = "  ".join(
            f"{name} {_figure(float(value))}" for name, value in trainer.progress_bar_metrics.items() if name != "v_num"
        )
        log.info("step %d/%d  %.0f s left  %s", step, steps, left, shown)


def _figure(value: float) -> str:
    """Write four digits, and large figures whole."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class Best(pl.Callback):
    """Keep the weights with the lowest held-out loss."""

    def __init__(self, save: Callable[[pl.LightningModule, float], None]) -> None:
        """Call `save(module, loss)` whenever the held-out loss is the lowest so far."""
        self.save, self.lowest = save, float("inf")

    def state_dict(self) -> dict[str, float]:
        """Return the lowest loss, for checkpoints."""
        return {"lowest": self.lowest}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Go on from the lowest loss of a checkpoint."""
        self.lowest = state_dict["lowest"]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare; averaged weights, where there are any, are still in place."""
        loss = trainer.callback_metrics.get("held_out_loss")
        if loss is None or trainer.sanity_checking:
            return
        if float(loss) < self.lowest:
            self.lowest = float(loss)
            self.save(pl_module, self.lowest)


class Showing(pl.Callback):
    """Call `show(step)` at intervals, to draw pictures and answer questions while it learns."""

    def __init__(self, every: int, show: Callable[[int], None]) -> None:
        """Show every `every` steps."""
        self.every, self.show = every, show

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show at a step border, with the random state untouched."""
        if trainer.global_step % self.every:
            return
        cast(Objective, pl_module).gather()
        if trainer.is_global_zero:
            state, training = torch.get_rng_state(), pl_module.training
            pl_module.eval()
            self.show(trainer.global_step)
            pl_module.train(training)
            torch.set_rng_state(state)


def callbacks_for(folder: Path, every: int) -> list[pl.Callback]:
    """Return what every run has: stop at a border, speed, gauges, checkpoints (in this order)."""
    return [StopAtBorder(), Speed(), Gauges(), StepCheckpoints(folder, every)]
