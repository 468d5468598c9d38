"""A training run of the unified model: shards and parts in, a model folder out."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from anymodal.data.config import DataConfig
from anymodal.data.opening import open_shards, parts_of
from anymodal.data.progress import track
from anymodal.data.samples import Reading, codes_of, fingerprints_of
from anymodal.learning.batches import DocumentBatches, StepData, cannot_serve, check_codes
from anymodal.learning.card import write_card
from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
from anymodal.learning.distributed import quiet_unless_first
from anymodal.learning.fitting import fit_and_save
from anymodal.learning.objective import UnifiedObjective
from anymodal.learning.settings import keep_settings
from anymodal.learning.stages import only_training, trained_of
from anymodal.model.config import AnyModalConfig, UnderstandingConfig
from anymodal.model.folder import ModelFolder
from anymodal.model.unified import AnyModal
from anymodal.tokens.config import ChatTemplate, PictureLayout
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary
from anymodal.tokens.weights import num_parameters

log = logging.getLogger(__name__)

HELD_OUT_SEED = 1_000_003


def train_unified(  # noqa: PLR0913  (one argument a section of the configuration)
    parts: ModelFolder,
    *,
    data: DataConfig,
    stage: StageConfig,
    optimizer: OptimizerConfig,
    run: RunConfig,
    out: Path,
    base: str = "",
    show: Callable[[int], None] | None = None,
) -> int:
    """Train `parts.model` as `stage` says and write the best model to `out/model`; the same call resumes.

    The card of that model names `base`, the model that it began from.

    Returns the exit code: 0 when the run is complete.

    Raises:
        ValueError: the stage or the shards do not fit the model, the shards hold too many bad samples, or `out` holds
            another run.
    """
    sections = {"data": data, "stage": stage, "optimizer": optimizer, "run": run}
    parts.card = write_card(parts, base, sections)
    num_trained = sum(each.parameter.numel() for each in trained_of(parts.model, stage))
    pl.seed_everything(run.seed, verbose=False)
    train = document_batches(parts, data, data.train, stage, run)
    held_out = None
    if data.held_out and run.validate_every:
        plain = replace(stage, prompt_dropout=0.0)
        checked = replace(run, seed=HELD_OUT_SEED, steps=run.validation_steps)
        held_out = document_batches(parts, data, data.held_out, plain, checked)
    objective = UnifiedObjective(parts.model, stage=stage, optimizer=optimizer, run=run)
    quiet_unless_first()
    keep_settings(out, {"parts": _settings_of(parts), "base": base, **sections})
    log.info(
        "%s parameters, of which %s train, %d samples, %d steps of %d documents",
        f"{num_parameters(parts.model):,}", f"{num_trained:,}", len(train.index), run.steps, run.batch_size,
    )  # fmt: skip
    steps = StepData(train, held_out, data.num_workers, data.worker_timeout_s)
    folder = out / "model"
    with only_training(parts.model, stage):
        return fit_and_save(
            objective, steps, run=run, out=out, folder=folder, save=partial(parts.save, folder), show=show
        )


def _settings_of(parts: ModelFolder) -> dict[str, Any]:
    """Return what must be the same for weights to mean the same."""
    return {
        "model": parts.model.config,
        "text_tokenizer": parts.text_tokenizer.fingerprint,
        "image_tokenizer": parts.image_tokenizer.fingerprint,
    }


def document_batches(
    parts: ModelFolder, data: DataConfig, shards: str, stage: StageConfig, run: RunConfig
) -> DocumentBatches:
    """Return the batches of a run on these shards.

    Raises:
        ValueError: the shards do not fit the model, or hold too many bad samples.
    """
    index = open_shards(
        data,
        shards,
        fingerprint=parts.image_tokenizer.fingerprint,
        progress=partial(track, what="index"),
        orders=sum(share > 0 for share in vars(stage.ratios).values()) * max(1, len(data.ratios)),
    )
    understanding = parts.model.config.understanding
    reading = Reading(
        fingerprint=parts.image_tokenizer.fingerprint,
        look_size=understanding.image_size if understanding else None,
        look_fit=(understanding or UnderstandingConfig()).fit,
        prompt_dropout=stage.prompt_dropout,
        questions_per_picture=stage.questions_per_picture,
    )
    if stage.ratios.draw or understanding is None:
        check_codes(index, reading)
    batches = DocumentBatches(
        index,
        encoder=parts.encoder(),
        reading=reading,
        stage=stage,
        order={"batch_size": run.batch_size, "seed": run.seed, "steps": run.steps, "cache_shards": data.cache_shards},
        parts=parts_of(data, index) if shards == data.train else (),
    )
    if batches.unserved and shards == data.train:
        raise ValueError(cannot_serve(batches.unserved))
    if batches.unserved:
        log.warning("held-out losses are without %s, for which %s hold no sample", batches.unserved, shards)
    return batches


def new_model(
    config: AnyModalConfig, data: DataConfig, *, text_tokenizer: Path, image_tokenizer: Path, template: ChatTemplate
) -> ModelFolder:
    """Put an untrained model and its tokenizers together; the picture layout is that of the first codes.

    Raises:
        ValueError: a tokenizer is missing, or the shards carry no codes of this image tokenizer.
    """
    text, image = TextTokenizer.load(text_tokenizer), ImageTokenizer.from_pretrained(image_tokenizer)
    index = open_shards(data, data.train, fingerprint=image.fingerprint)
    reading = Reading(fingerprint=image.fingerprint, look_size=None)
    check_codes(index, reading)
    coded = (index.read(number) for number in range(len(index)))
    grid = next(codes_of(sample, reading) for sample in coded if reading.fingerprint in fingerprints_of(sample)).shape
    vocabulary = Vocabulary.build(text_size=text.vocab_size, specials=text.specials, codebook_size=image.codebook_size)
    model = AnyModal(config, vocabulary)
    with torch.no_grad():
        model.start_from_codebook(image.quantizer.vectors(torch.arange(image.codebook_size)[None])[0].float())
    return ModelFolder(
        model=model,
        text_tokenizer=text,
        image_tokenizer=image,
        layout=PictureLayout(kind="fixed", sizes=((grid[0], grid[1]),)),
        template=template,
    )
