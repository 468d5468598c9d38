import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anymodal.pipeline import Pipeline
from anymodal.scoring.public.table import PUBLIC, AskingBench, DrawingBench, score_public


@pytest.fixture(scope="module")
def pipe(toy: Any) -> Pipeline:
    made = Pipeline(toy.parts())
    made.generation = made.prompter.generation = type(made.generation)(max_new_tokens=4)
    return made


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    data = tmp_path / "pope"
    data.mkdir()
    Image.new("RGB", (20, 16), "red").save(data / "COCO_val2014_1.jpg")
    for name in ("random", "popular", "adversarial"):
        rows = [{"question_id": i, "image": "COCO_val2014_1.jpg", "text": f"Is there a {thing} in the image?",
                 "label": label} for i, (thing, label) in enumerate((("dog", "yes"), ("cat", "no")))]  # fmt: skip
        (data / f"coco_pope_{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def test_the_table_is_whole() -> None:
    assert set(PUBLIC) == {
        "geneval", "dpg", "pope", "mmmu", "mme", "mmbench", "seed-bench", "realworldqa", "mathvista", "ocrbench",
    }  # fmt: skip
    assert all(bench.measures.startswith(("drawing: ", "answering: ")) and bench.files for bench in PUBLIC.values())
    assert all(isinstance(bench, AskingBench | DrawingBench) for bench in PUBLIC.values())


def test_pope_end_to_end(pipe: Pipeline, pope: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scores = score_public(pipe, "pope", pope, seed=3, out=out)
    assert [score.name for score in scores[:3]] == ["accuracy, mean", "F1, mean", "adversarial: accuracy"]
    assert [score.count for score in scores[:3]] == [6, 6, 2]
    answers = [json.loads(line) for line in (out / "pope" / "answers.jsonl").read_text().splitlines()]
    lines = (out / "pope" / "submission" / "coco_pope_random.json").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == [
        each["answer"] for each in answers if each["id"].startswith("coco_pope_random/")
    ]
    kept = (out / "pope" / "answers.jsonl").stat().st_mtime_ns
    assert score_public(pipe, "pope", pope, seed=3, out=out) == scores
    assert (out / "pope" / "answers.jsonl").stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="made with seed 3, this run has 4"):
        score_public(pipe, "pope", pope, seed=4, out=out)


def test_a_table_by_likelihood(pipe: Pipeline, tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(data, "PNG")
    cells = ("What?", "a dog", "a cat", "A", base64.b64encode(data.getvalue()).decode())
    rows = [("index", "question", "A", "B", "answer", "image"), *((f"{i}", *cells) for i in range(3))]
    (tmp_path / "SEEDBench_IMG.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    every, named = score_public(pipe, "seed-bench", tmp_path / "SEEDBench_IMG.tsv", limit=2, out=tmp_path)
    assert (every.count, named.value, every.chance) == (2, 1.0, 0.5)
    with pytest.raises(ValueError, match="made with by 'likelihood', this run has 'generation'"):
        score_public(pipe, "seed-bench", tmp_path / "SEEDBench_IMG.tsv", out=tmp_path, by="generation")


def test_geneval_end_to_end(pipe: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [{"tag": tag, "prompt": f"a photo of {thing}"} for tag, thing in (("colors", "a cow"), ("counting", "b"))]
    data, folder = tmp_path / "evaluation_metadata.jsonl", tmp_path / "geneval"
    data.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    assert score_public(pipe, "geneval", data, limit=1, out=tmp_path) == []
    told = capsys.readouterr().err
    assert f"4 pictures are in {folder / 'pictures'}; judge them" in told
    assert f"evaluate_images.py {folder / 'pictures'} --outfile {folder / 'results.jsonl'}" in told
    verdicts = [{"tag": "colors", "correct": i < 3, "metadata": json.dumps(prompts[0])} for i in range(4)]
    (folder / "results.jsonl").write_text("".join(json.dumps(verdict) + "\n" for verdict in verdicts))
    assert score_public(pipe, "geneval", data, limit=1, out=tmp_path)[0].value == 0.75
    with pytest.raises(ValueError, match="judges 4 pictures of 8"):
        score_public(pipe, "geneval", data, out=tmp_path)


def test_what_is_not_there_is_named(pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no public benchmark 'vqa'; those known are geneval, dpg, pope"):
        score_public(pipe, "vqa", tmp_path, out=tmp_path)
    with pytest.raises(ValueError, match=r"pope wants coco_pope_\*.json .*; there is no "):
        score_public(pipe, "pope", tmp_path / "none", out=tmp_path)
