import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from anymodal.scoring.easy_vqa import read_questions, split_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make the three questions of a package of the published form."""
    split = tmp_path / "easy_vqa" / "data" / "test"
    (split / "images").mkdir(parents=True)
    (tmp_path / "easy_vqa" / "__init__.py").touch()
    Image.new("RGB", (64, 64), "red").save(split / "images" / "0.png")
    Image.new("RGB", (64, 64), "blue").save(split / "images" / "12.png")
    asked = [["what is the red shape?", "triangle", 0], ["is there a circle?", "no", 0],
             ["what color is the shape?", "gray", 12]]  # fmt: skip
    (split / "questions.json").write_text(json.dumps(asked), encoding="utf-8")
    return split


def test_questions_are_read_as_published(folder: Path) -> None:
    found = read_questions(folder, 10, seed=0)
    assert [(each.question, each.answer, each.type) for each in found] == [
        ("what is the red shape?", "triangle", "shape"), ("is there a circle?", "no", "yes-no"),
        ("what color is the shape?", "gray", "colour"),
    ]  # fmt: skip
    assert [each.image.getpixel((0, 0)) for each in found] == [(255, 0, 0), (255, 0, 0), (0, 0, 255)]
    few = [[each.question for each in read_questions(folder, 2, seed)] for seed in (0, 0, 1, 2, 3)]
    assert few[0] == few[1]
    assert len({tuple(each) for each in few}) > 1


def test_the_package_is_found_or_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "easy_vqa", raising=False)
    monkeypatch.syspath_prepend(folder.parents[2])
    assert split_folder() == folder
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="pip install easy-vqa"):
        split_folder()


def test_the_published_split_has_its_size() -> None:
    folder = split_folder()
    assert len(json.loads((folder / "questions.json").read_text(encoding="utf-8"))) == 9673
    found = read_questions(folder, 60, seed=0)
    assert len(found) == 60
    assert {each.type for each in found} == {"yes-no", "shape", "colour"}
    assert found[0].image.size == (64, 64)
