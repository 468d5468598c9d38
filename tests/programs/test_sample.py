"""The programs that sample, with options that the README does not show."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anymodal.__main__ import main


@pytest.fixture(scope="module")
def model(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sampled") / "model"
    toy.parts(heads="decoupled").save(folder)
    return str(folder)


def test_a_document_is_shown_while_it_is_written(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", "document", "a dog", "--model", model, "--seed", "2", "--guidance-scale", "2"]
    assert main([*words, "--want", "image", "--stream", "--out", str(tmp_path / "streamed")]) == 0
    assert "4 of 4 rows" in capsys.readouterr().out
    assert main([*words, "--want", "image", "--out", str(tmp_path / "whole")]) == 0
    drawn = [Image.open(tmp_path / folder / "000.png").tobytes() for folder in ("streamed", "whole")]
    assert drawn[0] == drawn[1]
    assert (tmp_path / "streamed" / "growth.gif").is_file()
    assert json.loads((tmp_path / "whole" / "document.json").read_text(encoding="utf-8")) == [{"image": "000.png"}]
    capsys.readouterr()
    text = ["--want", "text", "--max-new-tokens", "9", "--temperature", "2", "--out", str(tmp_path / "text")]
    assert main([*words, *text, "--stream"]) == 0
    shown = capsys.readouterr().out
    assert main([*words, *text]) == 0
    assert capsys.readouterr().out.strip() == shown.strip()


def test_the_engine_and_the_weights_are_options(model: str, tmp_path: Path) -> None:
    words = ["sample", "image", "a dog", "a cat", "--model", model, "--guidance_scale", "300"]
    changes = {
        "plain": [],
        "guessed": ["--engine.speculation", "jacobi", "--engine.window", "4"],
        "alone": ["--engine.max_rows", "2"],
        "invariant": ["--engine.batch_invariant", "--engine.max_rows", "4"],
        "int8": ["--dtype", "int8"],
        "half": ["--guidance_interval", "[0, 0.5]"],
    }
    drawn = {}
    for name, options in changes.items():
        assert main([*words, *options, "--out", str(tmp_path / name)]) == 0
        drawn[name] = Image.open(tmp_path / name / "sheet.png").tobytes()
    assert drawn["plain"] == drawn["guessed"] == drawn["alone"]
    assert drawn["half"] != drawn["plain"]


def test_mistakes_cost_one_line(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--engine.max_rows", "0"], "max_rows must be in"),
        (["--engine.speculation", "jacob"], "jacobi"),
        (["--guidance_interval", "[1, 0]"], "guidance_interval must be two shares"),
        (["--dtype", "int4"], "dtype must be one of"),
    ):
        assert main(["sample", "image", "a dog", "--model", model, *options]) == 2
        error = capsys.readouterr().err
        assert message in error, error
        assert len(error.strip().splitlines()) == 1
