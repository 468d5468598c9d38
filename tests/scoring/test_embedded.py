"""The embedded model is the one whose scores stand in the card, and gives them again."""

import json
from pathlib import Path
from typing import Any

import pytest

from anymodal.configuration import to_dict
from anymodal.data.emoji import emoji_samples
from anymodal.data.pictures import decode_picture
from anymodal.data.samples import picture_bytes
from anymodal.model.folder import fingerprint_of
from anymodal.pipeline import Pipeline, find_folder, from_pretrained
from anymodal.scoring.answers import ask, questions_of, score_answers
from anymodal.scoring.bench import BenchConfig
from anymodal.scoring.judging import by_kind, draw, scene_prompt
from anymodal.scoring.reconstruction import measure
from anymodal.scoring.retrieval import stacked
from anymodal.scoring.scenes import SceneReader, score_scenes


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return from_pretrained("emoji", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def manifest(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "benchmarks" / "emoji.manifest.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def written(root: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the written scores by table and row."""
    found = json.loads((root / "benchmarks" / "emoji.json").read_text(encoding="utf-8"))["scores"]
    return {title: {row["name"]: row for row in rows} for title, rows in found.items()}


def test_the_written_scores_are_of_this_model_and_its_defaults(pipe: Pipeline, manifest: dict[str, Any]) -> None:
    assert manifest["model"]["fingerprint"] == fingerprint_of(find_folder("emoji")), (
        "score it and run benchmarks/card.py"
    )
    assert manifest["sampling"] == to_dict(pipe.generation)
    assert manifest["settings"] == {
        "bench": "all", "concepts": 100, "names": "all", "count": 240, "seed": 1000, "data": None,
    }  # fmt: skip


def test_its_image_tokenizer_keeps_as_much_as_is_written(pipe: Pipeline, written: Any) -> None:
    pictures = [decode_picture(picture_bytes(sample)) for sample in emoji_samples("held-out", size=48)]
    found = measure(pipe.image_tokenizer, stacked(pictures, 48))
    table = written["tokenizer, concepts that no training saw, 48 pixels"]
    assert found.psnr == pytest.approx(table["PSNR"]["value"], abs=0.01)
    assert found.perplexity == pytest.approx(table["perplexity of the codes"]["value"], rel=0.01)


def test_it_answers_as_is_written(pipe: Pipeline, written: Any) -> None:
    asked = questions_of(list(emoji_samples("held-out")))
    table = written["questions about concepts never trained"]
    for each in score_answers(asked, ask(pipe, asked)):
        row = table[f"{each.type} questions"]
        assert each.num_questions == row["count"]
        assert abs(each.num_right - row["value"] * row["count"]) <= 1.01, "but for a near-tie on another processor"


def test_it_draws_as_is_written(pipe: Pipeline, manifest: dict[str, Any], written: Any) -> None:
    config = BenchConfig(concepts=manifest["settings"]["concepts"])
    prompts = by_kind([scene_prompt(sample) for sample in config.scenes()])
    first, *_ = places = [i for i, prompt in enumerate(prompts) if prompt.scene.kind == "one"]
    some = [prompts[i] for i in places]
    drawn = draw(pipe, some, config.seed + first)
    found = score_scenes(drawn, [prompt.scene for prompt in some], SceneReader(config.scene_names))
    row = written["scenes, held-out combinations"]["one"]
    assert len(some) == row["count"]
    assert abs(found.share - row["value"]) <= 1.01 / row["count"], "but for a near-tie on another processor"
