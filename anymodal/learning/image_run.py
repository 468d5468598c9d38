"""A training run of an image tokenizer: shards in, a tokenizer folder out."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from anymodal.data.config import DataConfig
from anymodal.data.opening import open_shards, parts_of
from anymodal.data.progress import track
from anymodal.learning.batches import PictureBatches, StepData
from anymodal.learning.config import ImageObjectiveConfig, OptimizerConfig, RunConfig
from anymodal.learning.distributed import quiet_unless_first
from anymodal.learning.fitting import fit_and_save, precision_of
from anymodal.learning.image_objective import ImageTokenizerObjective
from anymodal.learning.settings import keep_settings
from anymodal.learning.unified_run import HELD_OUT_SEED
from anymodal.tokens.folders import staged_folder
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.weights import num_parameters

log = logging.getLogger(__name__)


def train_image_tokenizer(  # noqa: PLR0913  (one argument a section of the configuration)
    tokenizer: ImageTokenizer,
    *,
    data: DataConfig,
    losses: ImageObjectiveConfig,
    optimizer: OptimizerConfig,
    run: RunConfig,
    out: Path,
    base: str = "",
    features: Callable[[Tensor], list[Tensor]] | None = None,
    show: Callable[[int], None] | None = None,
) -> int:
    """Train `tokenizer`, which began from `base`, and write the best one to `out/image_tokenizer`.

    The same call resumes. Returns the exit code: 0 when the run is complete.

    Raises:
        ValueError: the shards hold too many bad pictures, the size does not fit the tokenizer, steps are to be
            computed in pieces, or `out` holds another run.
    """
    check_fits(tokenizer, losses, run)
    pl.seed_everything(run.seed, verbose=False)
    train = picture_batches(data, data.train, losses.size, run)
    held_out = None
    if data.held_out and run.validate_every:
        held_out = picture_batches(
            data, data.held_out, losses.size, replace(run, seed=HELD_OUT_SEED, steps=run.validation_steps)
        )
    if precision_of(run) == "float32":
        cast(Any, tokenizer).to(memory_format=torch.channels_last)  # 1.1 s against 1.5 s a step on CPU
    objective = ImageTokenizerObjective(tokenizer, losses=losses, optimizer=optimizer, run=run, features=features)
    quiet_unless_first()
    sections = {"data": data, "losses": losses, "optimizer": optimizer, "run": run}
    keep_settings(out, {"parts": tokenizer.config, "base": base, **sections})
    log.info(
        "%s parameters, %d pictures, %d steps of %d",
        f"{num_parameters(tokenizer):,}", len(train.index), run.steps, run.batch_size,
    )  # fmt: skip
    folder = out / "image_tokenizer"

    def save() -> None:
        with staged_folder(folder) as staged:
            tokenizer.save_pretrained(staged)

    steps = StepData(train, held_out, data.num_workers, data.worker_timeout_s)
    return fit_and_save(objective, steps, run=run, out=out, folder=folder, save=save, show=show)


def check_fits(tokenizer: ImageTokenizer, losses: ImageObjectiveConfig, run: RunConfig) -> None:
    """Check that a tokenizer can be trained as a run wants it.

    Raises:
        ValueError: the size does not fit the tokenizer, or the run asks for what is for transformers.
    """
    factor = tokenizer.config.down_sampling
    if losses.size % factor:
        raise ValueError(
            f"losses.size must be a multiple of the tokenizer's down-sampling {factor}, got {losses.size}."
        )
    if run.accumulate != 1:
        raise ValueError(
            f"run.accumulate must be 1 for image tokenizers, whose codebooks learn from whole batches, got "
            f"{run.accumulate}; lower run.batch_size instead."
        )
    if run.compile or run.checkpoint_activations:
        raise ValueError("run.compile and run.checkpoint_activations are for transformers, not for image tokenizers.")
    if run.strategy != "ddp":
        raise ValueError(f"run.strategy must be ddp for image tokenizers, which one device holds, got {run.strategy}.")


def picture_batches(data: DataConfig, shards: str, size: int, run: RunConfig) -> PictureBatches:
    """Return the batches of a run on these shards, pictures of `size` pixels a side.

    Raises:
        ValueError: the shards hold no pictures, or too many bad ones.
    """
    index = open_shards(
        data, shards, needs=("picture",), progress=partial(track, what="index"), orders=max(1, len(data.ratios))
    )
    if without := index.bad.get("no picture"):
        log.info("%d of %d samples are left out: they hold no picture", without, without + len(index))
    order = {"batch_size": run.batch_size, "seed": run.seed, "steps": run.steps, "cache_shards": data.cache_shards}
    return PictureBatches(index, size=size, order=order, parts=parts_of(data, index) if shards == data.train else ())
