import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anymodal.learning.accumulation import StepBatch
from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
from anymodal.learning.objective import UnifiedObjective
from anymodal.model.config import AnyModalConfig, TransformerConfig, UnderstandingConfig
from anymodal.model.unified import AnyModal
from anymodal.tokens.batch import Batch, pad
from anymodal.tokens.document import TokenSequence
from anymodal.tokens.vocabulary import Vocabulary

GOLDEN = Path(__file__).with_name("golden_losses.json")


def make(stage: StageConfig | None = None, optimizer: OptimizerConfig | None = None) -> UnifiedObjective:
    """Make a model without torch's generator, whose numbers may differ between versions."""
    transformer = TransformerConfig(dim=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, hidden_dim=32)
    understanding = UnderstandingConfig(image_size=8, patch_size=4, dim=8, depth=1, num_heads=2, hidden_dim=16)
    vocabulary = Vocabulary.build(text_size=12, specials={"pad": 0, "look": 1}, codebook_size=6)
    config = AnyModalConfig(transformer=transformer, understanding=understanding, heads="decoupled")
    model = AnyModal(config, vocabulary)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            waves = torch.arange(parameter.numel()).double().mul(0.7 + number).sin().view_as(parameter)
            parameter.copy_(waves * 0.3 + (1 if parameter.ndim == 1 and parameter.numel() == 16 else 0))
    run = RunConfig(steps=5, precision="float32")
    return UnifiedObjective(
        model, stage=stage or StageConfig(), optimizer=optimizer or OptimizerConfig(warmup_steps=0), run=run
    )


def ready(objective: UnifiedObjective, step: int = 0) -> StepBatch:
    return objective.transfer_batch_to_device(batch(step), objective.device, 0)


def batch(step: int = 0) -> Batch:
    ids = torch.tensor([2, 1, 1, 1, 1, 3 + step, 4, 13, 14 + step % 3, 5])
    pixels = torch.linspace(-1, 1, 192).view(3, 8, 8) * (1 + step) / 5
    return pad([TokenSequence(ids, torch.arange(10) > 5, ((1, pixels),))], 0, 4)


def train(objective: UnifiedObjective, steps: int, spoil: Callable[[int], bool] = lambda _: False) -> list[float]:
    built: Any = objective.configure_optimizers()
    optimizer = built["optimizer"]
    objective.log = lambda *_, **__: None  # type: ignore[method-assign]
    losses = []
    for step in range(steps):
        loss = objective.training_step(ready(objective, step), step)
        optimizer.zero_grad()
        loss.backward()
        if spoil(step):
            next(objective.parameters()).grad = torch.full_like(next(objective.parameters()), torch.nan)
        objective.configure_gradient_clipping(optimizer)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_golden_losses() -> None:
    """A refactoring keeps these numbers; a change that is meant writes them again."""
    losses = train(make(), 5)
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), abs=1e-4)


def test_each_modality_counts_its_own_targets() -> None:
    objective = make(StageConfig(text_weight=2.0, image_weight=0.5, z_loss=0.1))
    losses = objective.model(batch(), 0.1).losses
    text, image = losses["text"], losses["image"]
    assert text.total > text.nats
    expected = 2 * text.total / 2 + 0.5 * image.total / 2
    objective.log = lambda *_, **__: None  # type: ignore[method-assign]
    assert (int(text.count), int(image.count)) == (2, 2)
    torch.testing.assert_close(objective.training_step(ready(objective), 0), expected)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    objective = make()
    before = [parameter.detach().clone() for parameter in objective.parameters()]
    train(objective, 3, spoil=lambda _: True)
    assert all(torch.equal(a, b) for a, b in zip(before, objective.parameters(), strict=True))
    assert objective.bad_steps.in_a_row == 3
    train(objective, 1)
    assert objective.bad_steps.in_a_row == 0
    train(objective, 4, spoil=lambda _: True)
    objective.on_save_checkpoint({})
    train(objective, 1, spoil=lambda _: True)
    for late in (lambda: objective.on_save_checkpoint({}), lambda: train(objective, 1)):
        with pytest.raises(ValueError, match="not finite in 5 steps in a row .* lower the learning rate"):
            late()


def test_randomness_is_that_of_the_step() -> None:
    objective: Any = make()
    objective.on_train_batch_start(None, 0)
    first = torch.rand(3)
    objective.on_train_batch_start(None, 0)
    assert torch.equal(torch.rand(3), first)
    objective.run = replace(objective.run, seed=1)
    objective.on_train_batch_start(None, 0)
    assert not torch.equal(torch.rand(3), first)
