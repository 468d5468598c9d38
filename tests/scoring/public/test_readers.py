import base64
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from anymodal.scoring.public.readers import (
    read_choices,
    read_mathvista,
    read_mme,
    read_mmmu,
    read_ocrbench,
    read_pope,
)

PYARROW = find_spec("pyarrow") is not None


def picture(colour: str = "red") -> bytes:
    data = BytesIO()
    Image.new("RGB", (4, 4), colour).save(data, "PNG")
    return data.getvalue()


def encoded(colour: str = "red") -> str:
    return base64.b64encode(picture(colour)).decode()


def table(path: Path, *rows: dict[str, str]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([row.get(name, "") for name in names] for row in rows)]
    path.write_text("".join("\t".join(line) + "\n" for line in lines))


def test_pope(tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "COCO_val2014_1.jpg", "text": "Is there a dog in the image?", "label": "no"}
    for name in ("random", "popular"):
        (tmp_path / f"coco_pope_{name}.json").write_text(json.dumps(row) + "\n")
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "COCO_val2014_1.jpg").write_bytes(picture())
    first, second = read_pope(tmp_path)
    assert (first.group, second.group, first.answers) == ("popular", "random", ("no",))
    assert first.parts == (tmp_path / "val2014" / "COCO_val2014_1.jpg", "Is there a dog in the image?")
    (tmp_path / "coco_pope_random.json").write_text(json.dumps({**row, "label": "perhaps"}))
    with pytest.raises(ValueError, match=r"coco_pope_random.json, line 1: label must be one of yes, no, got 'perhaps'"):
        read_pope(tmp_path)


def test_mme_in_both_layouts(tmp_path: Path) -> None:
    lines = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    for folder, texts in (("existence", "existence"), ("OCR/images", "OCR/questions_answers_YN")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / texts).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "0001.png").write_bytes(picture())
        (tmp_path / texts / "0001.txt").write_text(lines)
    (tmp_path / "eval_tool").mkdir()
    questions = read_mme(tmp_path)
    assert [(each.group, each.answers[0]) for each in questions] == [
        ("existence", "yes"), ("existence", "no"), ("OCR", "yes"), ("OCR", "no"),
    ]  # fmt: skip
    assert len({each.unit for each in questions}) == 2
    (tmp_path / "existence" / "0001.txt").write_text("Is it red?\tYes\n")
    with pytest.raises(ValueError, match=r"existence.0001.txt must hold two lines"):
        read_mme(tmp_path)


CHOICE = {
    "id": "validation_Art_Theory_1", "question": "Which <image 1> is it?", "options": "['a dog', '<image 2>']",
    "answer": "B", "question_type": "multiple-choice",
}  # fmt: skip
OPEN = {"id": "validation_Math_2", "question": "How much?", "options": "[]", "answer": "['1.5', '3/2']"}


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[dict[str, Any]]], Path]:
    """Write rows as parquet, where pyarrow is missing with a stand-in for it."""

    def write(rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / "validation-00000-of-00001.parquet"
        if PYARROW:
            from pyarrow import Table, parquet

            parquet.write_table(Table.from_pylist(rows), path)
            return path
        path.write_bytes(b"PAR1")
        stand_in: Any = ModuleType("pyarrow.parquet")
        stand_in.ParquetFile = lambda _: SimpleNamespace(read=lambda: SimpleNamespace(to_pylist=lambda: rows))
        monkeypatch.setitem(sys.modules, "pyarrow", ModuleType("pyarrow"))
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", stand_in)
        return path

    return write


def test_mmmu_as_its_authors_distribute_it(parquet: Callable[..., Path]) -> None:
    red, blue = ({"bytes": picture(colour), "path": None} for colour in ("red", "blue"))
    rows = [{**CHOICE, "image_1": red, "image_2": blue}, {**OPEN, "image_1": red, "image_2": None}]
    choice, free = read_mmmu(parquet(rows).parent)
    end = "Answer with the option's letter from the given choices directly."
    assert choice.parts == ("Which ", picture("red"), " is it?\n\n(A) a dog\n(B) ", picture("blue"), f"\n\n\n{end}")
    assert (choice.options, choice.answers, choice.group) == ({"A": "a dog", "B": "<image 2>"}, ("B",), "Art_Theory")
    assert free.parts == (picture("red"), "How much?\n\nAnswer the question using a single word or phrase.")
    assert (free.options, free.answers) == ({}, ("1.5", "3/2"))


def test_mmmu_tells_what_is_missing(
    tmp_path: Path, parquet: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="there must be files validation-"):
        read_mmmu(tmp_path)
    with pytest.raises(ValueError, match="row 0 names picture 1, which it does not carry"):
        read_mmmu(parquet([{**CHOICE, "image_1": None}]))
    with pytest.raises(ValueError, match="must carry its answer"):
        read_mmmu(parquet([{**OPEN, "answer": "?"}]))
    path = parquet([OPEN])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="needs pyarrow: `pip install pyarrow`, or take VLMEvalKit"):
        read_mmmu(path)


def test_mmmu_as_a_table(tmp_path: Path) -> None:
    image = f"['{encoded('red')}', '{encoded('blue')}']"
    same = {"id": "validation_Art_1", "split": "validation", "category": "Art", "question": "<image 2> or <image 1>?"}
    path = tmp_path / "MMMU_DEV_VAL.tsv"
    table(
        path,
        {"index": "1", **same, "A": "None", "B": "two", "answer": "A", "image": image},
        {"index": "2", **same, "id": "dev_Art_1", "answer": "7", "image": image},
    )
    (question,) = read_mmmu(path)
    assert question.parts[:3] == (picture("blue"), " or ", picture("red"))
    assert (question.options, question.group) == ({"A": "None", "B": "two"}, "Art")


def test_choices_share_pictures_and_turn_round(tmp_path: Path) -> None:
    row = {"question": "What?", "hint": "Look.", "A": "a dog", "B": "a cat", "answer": "A", "category": "animals"}
    turned = {**row, "index": "1000007", "A": "a cat", "B": "a dog", "answer": "B", "image": "7"}
    table(tmp_path / "MMBench_DEV_EN.tsv", {"index": "7", **row, "image": encoded()}, turned)
    first, second = read_choices(tmp_path)
    end = "Options:\nA. a dog\nB. a cat\nPlease select the correct answer from the options above. \n"
    assert first.parts == (picture(), f"Hint: Look.\nQuestion: What?\n{end}")
    assert (second.parts[0], second.answers, second.options) == (picture(), ("B",), {"A": "a cat", "B": "a dog"})
    assert first.unit == second.unit == "7"
    assert "image" not in first.row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "9"}, "takes its picture from row '9', which is missing"),
        ({"image": "no base64 " * 10}, "must carry its picture in base64"),
        ({"answer": ""}, "must carry its answer, which test splits hide"),
        ({"question": ""}, "line 2 must have a field 'question'"),
    ],
)
def test_broken_choices_are_named(tmp_path: Path, change: dict[str, str], message: str) -> None:
    row = {"index": "1", "question": "What?", "A": "a dog", "B": "a cat", "answer": "A", "image": encoded()}
    table(tmp_path / "a.tsv", {**row, **change})
    with pytest.raises(ValueError, match=message):
        read_choices(tmp_path / "a.tsv")


def test_mathvista(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(picture())
    row = {
        "question": "How far?", "image": "images/1.jpg", "choices": None, "unit": "m", "precision": 1, "answer": "1.2",
        "question_type": "free_form", "answer_type": "float", "pid": "1", "metadata": {"task": "geometry"},
    }  # fmt: skip
    choice = {**row, "choices": ["145°", "150°"], "answer": "145°", "answer_type": "text", "unit": None}
    (tmp_path / "testmini.json").write_text(json.dumps({"1": row, "2": choice}))
    first, second = read_mathvista(tmp_path)
    assert str(first.parts[1]).endswith("Question: How far? (Unit: m)")
    assert str(second.parts[1]).endswith("Question: How far?\nChoices:\n(A) 145°\n(B) 150°")
    assert (first.group, second.options["B"], second.answers) == ("geometry", "150°", ("145°",))
    (tmp_path / "testmini.json").write_text(json.dumps({"1": {**row, "answer": ""}}))
    with pytest.raises(ValueError, match=r"testmini.json, entry 1 must have a field 'answer'"):
        read_mathvista(tmp_path)


def test_ocrbench(tmp_path: Path) -> None:
    (tmp_path / "OCRBench_Images" / "svt").mkdir(parents=True)
    (tmp_path / "OCRBench_Images" / "svt" / "1.png").write_bytes(picture())
    row = {"dataset_name": "svt", "id": 1, "image_path": "svt/1.png", "question": "what is written in the image?"}
    rows = [{**row, "answers": answers, "type": "Doc-oriented VQA"} for answers in ("CENTRE", ["two", "2"])]
    (tmp_path / "OCRBench.json").write_text(json.dumps(rows))
    first, second = read_ocrbench(tmp_path)
    assert (first.answers, second.answers, first.group) == (("CENTRE",), ("two", "2"), "Doc-oriented VQA")
    assert first.parts[0] == tmp_path / "OCRBench_Images" / "svt" / "1.png"
