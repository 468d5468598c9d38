from pathlib import Path
from typing import Any

from PIL import Image

from anymodal.data.config import DataConfig
from anymodal.pipeline import Pipeline
from anymodal.scoring.answers import Asked
from anymodal.scoring.showing import first_questions, snapshots


def test_prompts_are_drawn_as_one_picture_and_answers_written(toy: Any, tmp_path: Path) -> None:
    asked = [Asked(Image.new("RGB", (16, 16)), "What is this?", "a dog", "what")]
    show = snapshots(Pipeline(toy.parts()), ["a dog", "a cat"], asked, tmp_path / "samples")
    show(3)
    show(12)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["step-00000003.png", "step-00000003.txt", "step-00000012.png", "step-00000012.txt"]
    with Image.open(tmp_path / "samples" / "step-00000012.png") as sheet:
        assert sheet.width > 2 * 2 * 16
        assert sheet.height > 2 * 16
    text = (tmp_path / "samples" / "step-00000012.txt").read_text(encoding="utf-8")
    assert text.startswith("What is this? ")
    assert text.endswith("(a dog)\n")


def test_without_prompts_only_answers_are_written(toy: Any, tmp_path: Path) -> None:
    asked = [Asked(Image.new("RGB", (16, 16)), "Is it red?", "yes", "yes-no")]
    snapshots(Pipeline(toy.parts()), [], asked, tmp_path)(1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.txt"]


def test_questions_come_from_held_out_shards(toy: Any) -> None:
    data = DataConfig(train=toy.coded, held_out=toy.coded)
    found = first_questions(data)
    assert 1 <= len(found) <= 8
    assert all(each.question and each.answer for each in found)
