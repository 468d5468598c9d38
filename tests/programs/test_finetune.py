from pathlib import Path
from typing import Any

import pytest
import torch

from anymodal.__main__ import main
from anymodal.model.folder import ModelFolder


def tune(toy: Any, model: Path, out: Path, *more: str) -> int:
    words = ["train", "finetune", "--model", str(model), "--data.train", toy.coded, "--data.num_workers", "0"]
    words += ["--out", str(out), "--run.steps", "2", "--run.batch_size", "4", "--run.precision", "float32"]
    return main([*words, "--stage.seq_len", "256", "--optimizer.warmup_steps", "1", *more])


def test_goes_on_from_a_model_folder(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy.parts(dropout=0.1).save(tmp_path / "model")
    assert tune(toy, tmp_path / "model", tmp_path / "tuned") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'tuned' / 'model'}: 2 steps\n"
    before, after = (ModelFolder.load(tmp_path / name).model for name in ("model", "tuned/model"))
    still = [name for name, tensor in after.state_dict().items() if torch.equal(tensor, before.state_dict()[name])]
    assert still == []


def test_an_encoder_is_dropped_for_codes(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy.parts(heads="decoupled").save(tmp_path / "model")
    assert tune(toy, tmp_path / "model", tmp_path / "tuned", "--read_codes", "true") == 0
    tuned = ModelFolder.load(tmp_path / "tuned/model").model
    assert tuned.config.understanding is None
    assert tuned.config.heads == "decoupled"
    assert tune(toy, tmp_path / "tuned/model", tmp_path / "more", "--read_codes", "true") == 2
    assert "reads pictures as codes already" in capsys.readouterr().err


def test_a_missing_model_ends_with_code_2(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(toy, tmp_path / "gone", tmp_path / "tuned") == 2
    assert "there is no model" in capsys.readouterr().err
