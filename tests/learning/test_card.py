"""The card of a trained model says what it began from and how it was trained."""

from pathlib import Path
from typing import Any

import yaml

from anymodal.configuration import from_dict
from anymodal.learning.card import write_card
from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
from anymodal.learning.unified_run import train_unified
from anymodal.model.folder import ModelFolder

RUN = RunConfig(steps=1, batch_size=2, precision="float32", validate_every=0)


def test_a_trained_model_has_a_card_of_its_own(toy: Any, tmp_path: Path) -> None:
    parts, stage = toy.parts(), StageConfig(seq_len=256, trains=("image_head",))
    parts.card = "# The model that it began from, and its scores\n"
    assert train_unified(
        parts, data=toy.data, stage=stage, optimizer=OptimizerConfig(), run=RUN, out=tmp_path, base="emoji"
    ) == 0  # fmt: skip
    card = ModelFolder.load(tmp_path / "model").card
    assert "its scores" not in card
    assert "began from `emoji`" in card
    settings = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert from_dict(StageConfig, settings["stage"]) == stage
    assert from_dict(RunConfig, settings["run"]) == RUN


def test_the_card_tells_the_design(toy: Any) -> None:
    card = write_card(toy.parts(heads="shared", understanding=None), "", {})
    assert "as codes and write with one shared head" in card
    assert "16 codes" in card
    assert "began" not in card
