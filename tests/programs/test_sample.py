"""The programs that sample, with options that the README does not show."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anymodal.__main__ import main
from anymodal.scoring.bench import BENCHES


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
    assert "4 of 4 rows" in capsys.readouterr().err
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
        (["--device", "gpu"], "device must be one that torch has here, got 'gpu'"),
        (["--seed", "9" * 20], "seed must fit 64 bits"),
    ):
        assert main(["sample", "image", "a dog", "--model", model, *options]) == 2
        error = capsys.readouterr().err
        assert message in error, error
        assert len(error.strip().splitlines()) == 1


def test_scores_come_with_a_manifest_and_failures(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", "score", "--model", model, "--bench", "scenes", "--concepts", "6", "--count", "3"]
    for name in ("first", "second"):
        out = ["--out", str(tmp_path / name / "scores.json"), "--sheet", str(tmp_path / name / "failures.png")]
        assert main([*words, *out]) == 0
    shown = capsys.readouterr().out
    assert "rendered truth (at least 99 %) 100.0 % of 3" in " ".join(shown.split())
    assert "mean of the kinds" in shown
    first, second = (tmp_path / name for name in ("first", "second"))
    for name in ("scores.json", "failures.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), "same seeds, same numbers"
    table = json.loads((first / "scores.json").read_text(encoding="utf-8"))["scores"]["scenes, held-out combinations"]
    assert table[0]["count"] == 3
    manifest = json.loads((first / "scores.manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"] == {
        "bench": "scenes", "concepts": 6, "names": "all", "count": 3, "seed": 1000, "data": None,
    }  # fmt: skip
    with Image.open(first / "failures.png") as sheet:
        assert sheet.width > 2 * 128


def test_scores_before_a_failure_are_kept(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> list[Any]:
        raise ValueError("this bench must fail.")

    monkeypatch.setattr("anymodal.scoring.bench.SIDES", (32,))
    monkeypatch.setitem(BENCHES, "names", replace(BENCHES["names"], run=fail))
    out = tmp_path / "scores.json"
    words = ["sample", "score", "--model", model, "--concepts", "6", "--count", "2"]
    assert main([*words, "--out", str(out)]) == 2
    assert set(json.loads(out.read_text(encoding="utf-8"))["scores"]) == {
        "tokenizer, concepts that no training saw, 32 pixels", "tokenizer, held-out scenes, 32 pixels",
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.json", "scores.manifest.json"]


def test_a_public_benchmark_is_a_bench(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
    (tmp_path / "evaluation_metadata.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    words = ["sample", "score", "--model", model, "--bench", "geneval", "--data", str(tmp_path)]
    assert main([*words, "--out", str(tmp_path / "out" / "scores.json")]) == 0
    assert "evaluate_images.py" in capsys.readouterr().err
    assert len(list((tmp_path / "out" / "geneval").rglob("*.png"))) >= 4
    assert main(words) == 2
    assert "with --out a JSON file" in capsys.readouterr().err


def test_mistakes_of_scoring_cost_one_line(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--bench", "taste"], "bench must be all or one of tokenizer, names"),
        (["--bench", "pope"], "pope wants coco_pope"),
        (["--bench", "scenes", "--count", "0"], "count must be at least 2"),
        (["--bench", "scenes", "--concepts", "1"], "concepts must be from 2"),
        (["--bench", "scenes", "--sheet", "failures"], "name a file failures.png"),
        (["--bench", "stamps", "--data", str(tmp_path)], "apt-get install tuxpaint-stamps-default"),
    ):
        assert main(["sample", "score", "--model", model, *options]) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("stamps:")]
        assert message in error[0]
        assert len(error) == 1
