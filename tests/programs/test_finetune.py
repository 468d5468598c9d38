from pathlib import Path
from typing import Any

import pytest
import torch

from anymodal.__main__ import main
from anymodal.model.folder import ModelFolder


def test_goes_on_from_a_model_folder(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy.parts(dropout=0.1).save(tmp_path / "model")
    words = [
        "train",
        "finetune",
        "--model",
        str(tmp_path / "model"),
        "--data.train",
        toy.coded,
        "--stage.seq_len",
        "256",
    ]
    words += ["--out", str(tmp_path / "tuned"), "--run.steps", "2", "--run.batch_size", "4", "--data.num_workers", "0"]
    words += ["--stage.seq_len", "256", "--run.precision", "float32", "--optimizer.warmup_steps", "1"]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'tuned' / 'model'}: 2 steps\n"
    before, after = (ModelFolder.load(tmp_path / name).model for name in ("model", "tuned/model"))
    still = [name for name, tensor in after.state_dict().items() if torch.equal(tensor, before.state_dict()[name])]
    assert still == []


def test_an_encoder_is_dropped_for_codes(toy: Any, tmp_path: Path) -> None:
    toy.parts(heads="decoupled").save(tmp_path / "model")
    words = [
        "train",
        "finetune",
        "--model",
        str(tmp_path / "model"),
        "--data.train",
        toy.coded,
        "--data.num_workers",
        "0",
    ]
    words += ["--out", str(tmp_path / "tuned"), "--run.steps", "2", "--run.batch_size", "4", "--stage.seq_len", "256"]
    words += ["--read_codes", "true"]
    assert main(words) == 0
    tuned = ModelFolder.load(tmp_path / "tuned/model").model
    assert tuned.config.understanding is None
    assert tuned.config.heads == "decoupled"
    again = [*words[:2], "--model", str(tmp_path / "tuned/model"), *words[4:], "--out", str(tmp_path / "more")]
    assert main(again) == 2


def test_a_missing_model_ends_with_code_2(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "finetune", "--model", str(tmp_path / "gone"), "--data.train", toy.coded, "--out", str(tmp_path)]
    assert main(words) == 2
    assert "there is no model" in capsys.readouterr().err
