from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from anymodal.data.index import ShardIndex
from anymodal.data.samples import Reading
from anymodal.learning.batches import DocumentBatches
from anymodal.learning.config import OptimizerConfig, Ratios, RunConfig, StageConfig
from anymodal.learning.objective import UnifiedObjective
from anymodal.learning.stages import only_training, reached_by, trained_of
from anymodal.model.folder import ModelFolder
from anymodal.model.parts import parts_of
from anymodal.model.unified import AnyModal
from anymodal.tokens.batch import Batch

NOTHING = Ratios(draw=0.0, answer=0.0, text=0.0)
TASKS = {
    "draw": replace(NOTHING, draw=1.0),
    "answer": replace(NOTHING, answer=1.0),
    "text": replace(NOTHING, text=1.0),
    "all": Ratios(draw=0.4, answer=0.4, text=0.2),
}
Changed = Callable[[], dict[str, bool]]


def batch_of(toy: Any, parts: ModelFolder, stage: StageConfig) -> Batch:
    understanding = parts.model.config.understanding
    reading = Reading(
        fingerprint=parts.image_tokenizer.fingerprint, look_size=understanding.image_size if understanding else None
    )
    order = {"batch_size": 10, "seed": 0, "steps": 1}
    batches = DocumentBatches(
        ShardIndex.open(toy.coded), encoder=parts.encoder(), reading=reading, stage=stage, order=order
    )
    return batches[0]


def objective_of(model: AnyModal, stage: StageConfig, **optimizer: Any) -> UnifiedObjective:
    config = OptimizerConfig(**{"learning_rate": 0.01, "weight_decay": 0.3, "warmup_steps": 0, **optimizer})
    objective = UnifiedObjective(model.train(), stage=stage, optimizer=config, run=RunConfig(steps=9))
    objective.log = lambda *_, **__: None  # type: ignore[method-assign]
    return objective


def step(objective: UnifiedObjective, batch: Batch, count: int = 1) -> torch.optim.Optimizer:
    built: Any = objective.configure_optimizers()
    optimizer: torch.optim.Optimizer = built["optimizer"]
    ready = objective.transfer_batch_to_device(batch, objective.device, 0)
    for _ in range(count):
        objective.training_step(ready, 0).backward()
        objective.configure_gradient_clipping(optimizer)
        optimizer.step()
    return optimizer


def watch(model: AnyModal) -> Changed:
    before = {part: [piece.values.clone() for piece in pieces] for part, pieces in parts_of(model).items()}

    def changed() -> dict[str, bool]:
        return {
            part: not all(torch.equal(piece.values, old) for piece, old in zip(pieces, before[part], strict=True))
            for part, pieces in parts_of(model).items()
        }

    return changed


@pytest.mark.parametrize("heads", ["shared", "decoupled"])
@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_losses_reach_what_gradients_reach(toy: Any, heads: str, looks: bool, tied: bool) -> None:
    changes: dict[str, Any] = {} if looks else {"understanding": None}
    parts = toy.parts(heads=heads, tie_embeddings=tied, picture_places=17, **changes)
    for task, (text, image) in product(TASKS, [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)]):
        stage = StageConfig(ratios=TASKS[task], text_weight=text, image_weight=image)
        reached = reached_by(parts.model.config, stage)
        if not reached:
            assert (task in ("answer", "text"), text) == (True, 0.0)
            continue
        objective = objective_of(parts.model, stage)
        ready = objective.transfer_batch_to_device(batch_of(toy, parts, stage), objective.device, 0)
        objective.training_step(ready, 0).backward()
        for part, pieces in parts_of(parts.model).items():
            flowing = [piece.parameter.grad for piece in pieces if piece.parameter.grad is not None]
            rows = [grad[piece.start : piece.end] for grad, piece in zip(flowing, pieces, strict=True)]
            assert any(bool(grad.any()) for grad in rows) == (part in reached), f"{part} with {task} {text} {image}"


def test_only_rows_of_images_learn(toy: Any) -> None:
    """Anole's way: the rest of the head stays to the bit, under weight decay, and has no optimizer state."""
    model = toy.parts(heads="shared").model
    stage = StageConfig(trains=("image_head",), ratios=TASKS["all"])
    changed, before = watch(model), model.head.weight.detach().clone()
    with only_training(model, stage):
        assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["head.weight"]
        optimizer = step(objective_of(model, stage), batch_of(toy, toy.parts(heads="shared"), stage), 3)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [part for part, moved in changed().items() if moved] == ["image_head"]
    rows = model.image_ids
    assert bool((model.head.weight[rows] != before[rows]).all())
    held = [value.numel() for state in optimizer.state.values() for value in state.values() if value.numel() > 1]
    assert held == [len(rows) * 32] * 2


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_parts_learn_at_their_rates(toy: Any, name: str) -> None:
    """In one step, every part ends where a run ends that has its rate for all."""
    parts = toy.parts(heads="shared")
    rates = {"image_head": 0.25, "text_embedding": 4.0, "connector": 0.25}
    stage = StageConfig(ratios=TASKS["all"], rates=rates)
    batch = batch_of(toy, parts, stage)
    step(objective_of(parts.model, stage, name=name), batch)
    for rate in (0.25, 1.0, 4.0):
        alike = toy.parts(heads="shared").model
        step(objective_of(alike, StageConfig(ratios=TASKS["all"]), name=name, learning_rate=0.01 * rate), batch)
        for part, pieces in parts_of(alike).items():
            if rates.get(part, 1.0) == rate:
                for mine, other in zip(parts_of(parts.model)[part], pieces, strict=True):
                    torch.testing.assert_close(mine.values, other.values, rtol=1e-5, atol=1e-6)


def test_a_matrix_whose_rows_learn_alike_is_whole(toy: Any) -> None:
    model = toy.parts(heads="shared").model
    whole = trained_of(model, StageConfig())
    assert [each.name for each in whole] == [name for name, _ in model.named_parameters()]
    assert all(each.parameter is dict(model.named_parameters())[each.name] for each in whole)
    apart = trained_of(model, StageConfig(rates={"image_head": 0.5}))
    assert [each.name for each in apart].count("head.weight") == 2
    assert [each.name for each in apart].count("embedding.weight") == 1


def test_flags_are_put_back(toy: Any) -> None:
    model = toy.parts().model
    model.head.weight.requires_grad_(False)
    with only_training(model, StageConfig()):
        assert model.head.weight.requires_grad, "a stage without names trains all"
    assert not model.head.weight.requires_grad
    assert model.embedding.weight.requires_grad


def test_a_stage_names_parts_that_its_model_has(toy: Any) -> None:
    model = toy.parts(heads="decoupled").model
    has = "understanding, connector, transformer, text_embedding, text_head, image_embedding, image_head"
    with pytest.raises(ValueError, match=f"which has no 'conector'; did you mean 'connector'[?] It has {has}"):
        trained_of(model, StageConfig(trains=("conector",)))
    with pytest.raises(ValueError, match=f"which has no 'x'; it has {has}"):
        trained_of(model, StageConfig(rates={"x": 0.5}))
    tied = toy.parts(heads="decoupled", tie_embeddings=True).model
    with pytest.raises(ValueError, match="no 'text_head'"):
        trained_of(tied, StageConfig(trains=("text_head",)))


def test_a_stage_trains_what_its_losses_reach(toy: Any) -> None:
    model = toy.parts(heads="decoupled").model
    with pytest.raises(ValueError, match=r"with Ratios\(draw=0.0.* none reaches image_head; give a task that needs it"):
        trained_of(model, StageConfig(trains=("connector", "image_head"), ratios=TASKS["answer"]))
    with pytest.raises(ValueError, match="text_weight 0.0 and image_weight 1.0 none reaches anything"):
        trained_of(model, StageConfig(ratios=TASKS["text"], text_weight=0.0))
