"""The one training loop: a Lightning trainer with this package's checkpoints, clocks and logs."""

import csv
import importlib.util
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from anymodal.learning.allocation import keep_freed_memory
from anymodal.learning.averaging import Averaging
from anymodal.learning.batches import StepData
from anymodal.learning.callbacks import Bar, Best, ProgressLines, Showing, StopAtBorder, callbacks_for
from anymodal.learning.checkpoints import DurableCheckpointIO, newest, step_of
from anymodal.learning.config import RunConfig
from anymodal.learning.distributed import (
    count_over_ranks,
    is_first,
    peers_explained,
    processes_of,
    strategy_of,
)
from anymodal.learning.loading import explained
from anymodal.learning.objective import Objective

log = logging.getLogger(__name__)

STOPPED = 75


def fit_and_save(  # noqa: PLR0913  (what is trained, how, and where it goes)
    objective: Objective,
    data: StepData,
    *,
    run: RunConfig,
    out: Path,
    folder: Path,
    save: Callable[[], None],
    show: Callable[[int], None] | None = None,
) -> int:
    """Fit, keep in `folder` the best by its held-out loss, or without one the last, and tell what was skipped.

    `save` writes the folder, in the first process. Returns and raises as `fit` does.
    """

    def keep(_: pl.LightningModule, loss: float) -> None:
        log.info("best held-out loss so far: %.4f", loss)
        objective.gather()
        if is_first():
            save()

    callbacks: list[Callback] = [Best(keep)] if data.held_out is not None else []
    if show is not None and run.sample_every:
        callbacks.append(Showing(run.sample_every, show))
    code = fit(objective, data, run=run, out=out, callbacks=callbacks)
    with peers_explained(run):
        objective.gather()  # here, where a run comes by that had no step left, too
        skipped = count_over_ranks(data.skipped)
    for reason, count in sorted(skipped.items()):
        log.warning("skipped %d samples: %s", count, reason)
    if is_first() and (data.held_out is None or not folder.is_dir()):
        save()
    return code


def fit(
    objective: pl.LightningModule,
    data: StepData,
    *,
    run: RunConfig,
    out: Path,
    callbacks: Sequence[Callback] = (),
) -> int:
    """Train until `run.steps`, resuming from the newest whole checkpoint under `out`.

    Returns 0 when the run is complete, else what asks for the same command again: 130 after Ctrl-C, 75 after SIGTERM.

    Raises:
        ValueError: the processes do not fit the run, or all checkpoints are damaged.
        OSError: a process that prepares batches or another of the run has died or hangs, or the disk is full.
    """
    devices, nodes = processes_of(run)
    if not torch.cuda.is_available():
        keep_freed_memory()
    strategy = strategy_of(run, devices * nodes, one_backward=objective.automatic_optimization)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    folder = out / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    stop, *others = callbacks_for(folder, run.checkpoint_every)
    averaging = [Averaging(run.ema_decay)] if run.ema_decay else []
    bar = Bar() if sys.stderr.isatty() else ProgressLines()
    validated = run.validate_every if data.held_out is not None else 0
    checkpoint = _resumed(folder)
    objective.train()  # Lightning trains modules in the mode in which they come
    trainer = pl.Trainer(
        accelerator="auto",
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        precision="bf16-mixed" if precision_of(run) == "bf16" else "32-true",
        max_steps=run.steps,
        max_epochs=-1,
        callbacks=[*callbacks, *averaging, stop, *others, bar],
        logger=_loggers(out, step_of(checkpoint) if checkpoint else 0),
        plugins=[DurableCheckpointIO()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        log_every_n_steps=run.log_every,
        val_check_interval=validated or None,
        check_val_every_n_epoch=None if validated else 1,
        limit_val_batches=run.validation_steps if validated else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        gradient_clip_val=None,
    )
    assert isinstance(stop, StopAtBorder), "the first callback listens for signals"
    with _quietly(), stop.restored(), peers_explained(run, trainer.strategy), explained():
        trainer.fit(objective, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    for callback in averaging:
        callback.on_train_end(trainer, objective)  # Lightning leaves this out when no step was left
    if stop.received is None or trainer.global_step >= run.steps:
        return 0
    return 130 if stop.received == signal.SIGINT else STOPPED


def _resumed(folder: Path) -> Path | None:
    """Return what a run goes on from. One process reads whole checkpoints; where others read, strategies ask it first.

    Raises:
        ValueError: there are checkpoints, but none is whole.
    """
    found = sorted(folder.glob("step-*.ckpt"))
    if not is_first():
        return found[-1] if found else None
    checkpoint = newest(folder)
    if found and checkpoint is None:
        raise ValueError(f"no checkpoint in {folder} is whole; bring one back, or remove them all to begin anew.")
    return checkpoint


@contextmanager
def _quietly() -> Iterator[None]:
    """Leave out what Lightning warns of, and let it end on Ctrl-C as everything does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        try:
            yield
        except SystemExit as error:
            raise KeyboardInterrupt from error


def precision_of(run: RunConfig) -> str:
    """Return "bf16" or "float32": what `run.precision` means on this machine."""
    if run.precision != "auto":
        return run.precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "float32"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def _loggers(out: Path, start: int) -> list[Logger]:
    loggers: list[Logger] = [_csv_logger(out, start)]
    if importlib.util.find_spec("tensorboard") is not None:
        loggers.append(_Board(out, name="logs", version="", purge_step=start))  # what a resumed run repeats
    return loggers


class _Once:
    """Write a line once: `StepCheckpoints` logs a step before it saves, Lightning again behind it."""

    _last: str = ""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        line = f"{step} {sorted((name, float(value)) for name, value in metrics.items())}"
        if line != self._last:
            self._last = line
            super().log_metrics(metrics, step)  # type: ignore[misc]


class _Table(_Once, CSVLogger):
    """`metrics.csv`."""


class _Board(_Once, TensorBoardLogger):
    """What TensorBoard shows."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log a step; what goes wrong meanwhile, Lightning would take for a number that it does not support."""
        try:
            super().log_metrics(metrics, step)
        except ValueError as error:
            raise (error.__cause__ or error) from None


def _csv_logger(out: Path, start: int) -> CSVLogger:
    """Log to `out/logs/metrics.csv`, keeping what it says of the steps before `start`; Lightning's logger would not."""
    if not is_first():
        return CSVLogger(out, name="logs", version="")  # it writes nothing there
    path, before = out / "logs" / "metrics.csv", out / "logs" / ".metrics.csv.before"
    rows: list[dict[str, str]] = []
    if path.is_file() and not before.is_file():
        path.replace(before)  # until the new file is whole
    if before.is_file():
        with before.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row["step"] or "").isdigit() and int(row["step"]) < start]
    logger = _Table(out, name="logs", version="", flush_logs_every_n_steps=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory")
        logger.experiment.metrics = cast(Any, rows)  # it writes what it is given
    logger.save()
    before.unlink(missing_ok=True)
    return logger
