from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from anymodal.learning.config import OptimizerConfig, Ratios, RunConfig, StageConfig
from anymodal.learning.passing import through_of
from anymodal.learning.planning import activation_bytes, dry_run, picture_of, plan_of
from anymodal.learning.unified_run import document_batches
from anymodal.model.config import TransformerConfig

RUN = RunConfig(steps=8, batch_size=6, precision="float32")
STAGE = StageConfig(seq_len=256, ratios=Ratios(draw=0.5, answer=0.5, text=0.0))
OPTIMIZER = OptimizerConfig()


def test_counts_what_a_run_would_do(toy: Any) -> None:
    parts, stage = toy.parts(heads="decoupled"), replace(STAGE, trains=("transformer", "image_head"))
    batches = document_batches(parts, toy.data, toy.coded, stage, RUN)
    plan = plan_of(parts, batches, stage=stage, optimizer=OPTIMIZER, run=RUN)
    learning = sum(p.numel() for part in (parts.model.transformer, parts.model.image_head) for p in part.parameters())
    assert sum(count for count, _ in plan.parts.values()) == sum(p.numel() for p in parts.model.parameters())
    assert sum(own for _, own in plan.parts.values()) == learning
    assert plan.parts["understanding"][1] == 0
    assert plan.memory.gradients == 4 * learning
    assert plan.memory.optimizer == 8 * learning
    assert plan.epochs == {"draw": 24 / 3, "answer": 24 / 3}, "24 samples, 3 documents of each a step"
    assert plan.tokens == pytest.approx(sum(batches[step].num_tokens for step in range(4)) / 4)
    assert 0 <= plan.padding < 1
    muon = plan_of(
        parts, batches, stage=stage, optimizer=replace(OPTIMIZER, name="muon"), run=replace(RUN, ema_decay=0.9)
    )
    assert 4 * learning < muon.memory.optimizer < plan.memory.optimizer
    assert muon.memory.weights == 2 * plan.memory.weights


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_activations_are_as_many_as_are_kept(toy: Any, checkpoint_activations: bool) -> None:
    shape = TransformerConfig(
        dim=128, depth=6, num_heads=4, num_kv_heads=2, head_dim=32, hidden_dim=352, max_seq_len=512
    )
    parts, run = toy.parts(transformer=shape), replace(RUN, checkpoint_activations=checkpoint_activations)
    batch = document_batches(parts, toy.data, toy.coded, STAGE, run)[0]
    own = {each.untyped_storage().data_ptr() for each in [*parts.model.parameters(), *parts.model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    parts.model.train().transformer.through = through_of(run)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = parts.model(batch).losses
    chunk = 4 * int((batch.targets >= 0).sum()) * parts.model.vocabulary.size
    estimate = activation_bytes(parts.model, batch, run) - chunk
    plain = activation_bytes(parts.model, batch, RUN) - chunk
    again = plain / 6 if checkpoint_activations else 0  # a block's own, which are made on the way back
    assert losses["text"].total.requires_grad
    assert 1 / 1.5 < estimate / (sum(kept.values()) + again) < 1.5


def test_the_first_batch_is_a_picture(toy: Any) -> None:
    parts = toy.parts()
    batches = document_batches(parts, toy.data, toy.coded, STAGE, RUN)
    batch = batches[0]
    sheet = picture_of(parts, batch)
    assert batch.documents is not None
    assert batch.look_pixels is not None
    assert sheet.width > 6 * 2 * 16, "three pictures that are looked at and three that are drawn"
    assert len(sheet.getcolors(2**24) or []) > 20


@pytest.mark.parametrize("understanding", [True, False])
def test_leaves_nothing_but_the_picture(toy: Any, tmp_path: Path, understanding: bool) -> None:
    parts = toy.parts() if understanding else toy.parts(understanding=None)
    before = {name: weight.clone() for name, weight in parts.model.state_dict().items()}
    out = tmp_path / "run"
    said = dry_run(parts, data=toy.data, stage=STAGE, optimizer=OPTIMIZER, run=RUN, out=out)
    assert [path.name for path in out.iterdir()] == ["first_batch.png"]
    with Image.open(out / "first_batch.png") as picture:
        assert picture.width > 0
    assert all(torch.equal(weight, before[name]) for name, weight in parts.model.state_dict().items())
    assert "steps: 8 of 6 documents; an epoch is: draw 8.0 steps, answer 8.0 steps" in said
    assert said.endswith(f"first batch: {out / 'first_batch.png'}")
