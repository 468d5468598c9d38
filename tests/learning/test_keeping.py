"""Fine-tuning keeps what was there: the other task, measured before and after."""

from dataclasses import replace
from typing import Any

import torch

from anymodal.data.index import ShardIndex
from anymodal.data.samples import Reading
from anymodal.learning.batches import DocumentBatches
from anymodal.learning.config import OptimizerConfig, Ratios, RunConfig, StageConfig
from anymodal.learning.objective import UnifiedObjective
from anymodal.learning.stages import only_training
from anymodal.model.folder import ModelFolder
from anymodal.tokens.batch import IGNORE, Batch

DRAWS, ANSWERS = Ratios(draw=1.0, answer=0.0, text=0.0), Ratios(draw=0.0, answer=1.0, text=0.0)
BOTH = Ratios(draw=0.5, answer=0.5, text=0.0)
STEPS = 60


def batch_of(toy: Any, parts: ModelFolder, ratios: Ratios) -> Batch:
    reading = Reading(fingerprint=parts.image_tokenizer.fingerprint, look_size=16, prompt_dropout=0.0)
    stage = StageConfig(seq_len=256, ratios=ratios)
    order = {"batch_size": 12, "seed": 0, "steps": 1}
    index = ShardIndex.open(toy.coded)
    return DocumentBatches(index, encoder=parts.encoder(), reading=reading, stage=stage, order=order)[0]


def in_another_style(batch: Batch, parts: ModelFolder) -> Batch:
    """Exchange the codes of a batch one for another: the same prompts, other pictures."""
    codes = parts.model.vocabulary.table("image")
    table = torch.arange(parts.model.vocabulary.size)
    table[codes] = codes.flip(0)
    targets = torch.where(batch.targets == IGNORE, IGNORE, table[batch.targets.clamp(min=0)])
    return replace(batch, ids=table[batch.ids], targets=targets)


def learn(parts: ModelFolder, batch: Batch, stage: StageConfig) -> None:
    optimizer = OptimizerConfig(learning_rate=5e-3, warmup_steps=5, schedule="constant")
    run = RunConfig(steps=STEPS, log_every=STEPS + 1)
    objective = UnifiedObjective(parts.model.train(), stage=stage, optimizer=optimizer, run=run)
    objective.log = lambda *_, **__: None  # type: ignore[method-assign]
    with only_training(parts.model, stage):
        built: Any = objective.configure_optimizers()
        ready = objective.transfer_batch_to_device(batch, objective.device, 0)
        for number in range(STEPS):
            objective.training_step(ready, number).backward()
            objective.configure_gradient_clipping(built["optimizer"])
            built["optimizer"].step()


@torch.no_grad()
def loss_of(parts: ModelFolder, batch: Batch, modality: str) -> float:
    return float(parts.model.eval()(batch).losses[modality].mean)


def test_the_other_task_is_kept(toy: Any) -> None:
    parts = toy.parts(heads="decoupled")
    answers = batch_of(toy, parts, ANSWERS)
    style = in_another_style(batch_of(toy, parts, DRAWS), parts)
    with_answers = in_another_style(batch_of(toy, parts, BOTH), parts)
    learn(parts, batch_of(toy, parts, BOTH), StageConfig(ratios=BOTH))
    begun = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
    drew, answered = loss_of(parts, style, "image"), loss_of(parts, answers, "text")

    def after(batch: Batch, **stage: Any) -> tuple[float, float]:
        parts.model.load_state_dict(begun)
        learn(parts, batch, StageConfig(**stage))
        return loss_of(parts, style, "image"), loss_of(parts, answers, "text")

    head, kept = after(style, ratios=DRAWS, trains=("image_embedding", "image_head"))
    assert head < 0.9 * drew, "parts that only drawing uses learn the new style"
    assert kept == answered, "and answering does not pass through them"
    mixed, kept = after(with_answers, ratios=BOTH)
    assert mixed < 0.9 * drew
    assert kept < 1.05 * answered, "a share of answers keeps them where all parts learn"
    alone, lost = after(style, ratios=DRAWS)
    assert alone < 0.9 * drew
    assert lost > 1.2 * answered, "without it they are forgotten: this is what is measured"
