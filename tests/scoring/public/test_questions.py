from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from anymodal.scoring.public.questions import Question, by_group, find_picture, lettered, spread


def test_a_document_reads_its_pictures(tmp_path: Path) -> None:
    data = BytesIO()
    Image.new("RGB", (4, 2), "red").save(data, "PNG")
    (tmp_path / "a.png").write_bytes(data.getvalue())
    first, text, second = Question("1", (tmp_path / "a.png", "What?", data.getvalue()), ("red",)).document()
    assert isinstance(first, Image.Image)
    assert isinstance(second, Image.Image)
    assert (first.size, text, second.getpixel((0, 0))) == ((4, 2), "What?", (255, 0, 0))


def test_a_bad_picture_names_question_and_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"question 7: .*a\.png must be a readable picture: .*unknown format"):
        Question("7", (tmp_path / "a.png",), ()).document()
    with pytest.raises(ValueError, match=r"question 8: .*b\.png must be a readable picture"):
        Question("8", (tmp_path / "b.png",), ()).document()


def test_pictures_are_found_where_authors_keep_them(tmp_path: Path) -> None:
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "a.jpg").touch()
    assert find_picture(tmp_path, "a.jpg", "x.json, line 1") == tmp_path / "val2014" / "a.jpg"
    with pytest.raises(ValueError, match=r"x.json, line 1 names the picture b.jpg, which is not in"):
        find_picture(tmp_path, "b.jpg", "x.json, line 1")
    with pytest.raises(ValueError, match="must name a picture within"):
        find_picture(tmp_path / "val2014", "../val2014/a.jpg", "x.json, line 1")


def test_a_limit_keeps_what_belongs_together() -> None:
    pairs = [Question(f"{i}", (), (), unit=f"{i % 3}") for i in range(6)]
    assert [each.id for each in spread(pairs, 1)] == ["0", "3"]
    assert spread(pairs, None) == pairs


def test_groups_keep_their_order() -> None:
    questions = [Question(name, (), (), group=name[0]) for name in ("b1", "a1", "b2")]
    assert by_group(questions, ["", "", ""]) == {"b": [0, 2], "a": [1]}
    with pytest.raises(ValueError, match="3 questions and 1 answers"):
        by_group(questions, [""])
    assert lettered(["x", "y"]) == {"A": "x", "B": "y"}
