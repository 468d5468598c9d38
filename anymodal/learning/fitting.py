"""The one training loop: a Lightning trainer with this package's checkpoints, clocks and logs."""

import importlib.util
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.weight_averaging import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from anymodal.learning.batches import StepData
from anymodal.learning.callbacks import ProgressLines, StopAtBorder, callbacks_for
from anymodal.learning.checkpoints import DurableCheckpointIO, newest
from anymodal.learning.config import RunConfig

STOPPED = 75


def fit(
    objective: pl.LightningModule,
    data: StepData,
    *,
    run: RunConfig,
    out: Path,
    callbacks: Sequence[pl.Callback] = (),
    devices: int | str = 1,
) -> int:
    """Train until `run.steps`, resuming from the newest whole checkpoint under `out`.

    Returns 0 when the run is complete, else the exit code that asks for the same command again (130 after Ctrl-C, 75 after
    SIGTERM).
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    folder = out / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    stop, *others = callbacks_for(folder, run.checkpoint_every)
    averaging = [EMAWeightAveraging(decay=run.ema_decay)] if run.ema_decay else []
    bar = RichProgressBar() if sys.stderr.isatty() else ProgressLines()
    validated = run.validate_every if data.held_out is not None else 0
    trainer = pl.Trainer(
        accelerator="auto",
        devices=devices,
        precision="bf16-mixed" if precision_of(run) == "bf16" else "32-true",
        max_steps=run.steps,
        max_epochs=-1,
        callbacks=[*callbacks, *averaging, stop, *others, bar],
        logger=_loggers(out),
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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        trainer.fit(objective, datamodule=data, ckpt_path=newest(folder), weights_only=True)
    assert isinstance(stop, StopAtBorder), "the first callback listens for signals"
    if stop.received is None:
        return 0
    return 130 if stop.received == 2 else STOPPED


def precision_of(run: RunConfig) -> str:
    """Return "bf16" or "float32": what `run.precision` means on this machine."""
    if run.precision != "auto":
        return run.precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "float32"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def _loggers(out: Path) -> list[Logger]:
    loggers: list[Logger] = [CSVLogger(out, name="logs", version="")]
    if importlib.util.find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(out, name="logs", version=""))
    return loggers
