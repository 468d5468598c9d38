from pathlib import Path

import pytest

from anymodal.scoring.public.entries import find_file, read_lines, read_objects, read_table, spaced


def test_lines_objects_and_tables_tell_where_they_stand(tmp_path: Path) -> None:
    lines, objects, table = (tmp_path / name for name in ("a.jsonl", "b.json", "c.tsv"))
    lines.write_text('{"text": "a"}\n\n{"text": "b"}\n')
    objects.write_text('{"7": {"text": "c"}}')
    table.write_text(f'index\tquestion\timage\n1\t"two\nlines"\t{"x" * 200_000}\n2\t\tNone\n')
    assert [entry.where.rpartition(", ")[2] for entry in read_lines(lines)] == ["line 1", "line 3"]
    assert [(key, entry.text("text")) for key, entry in read_objects(objects)] == [("7", "c")]
    first, second = read_table(table)
    assert (first.text("question"), len(first.text("image"))) == ("two\nlines", 200_000)
    assert second.row == {"index": "2", "image": "None"}
    with pytest.raises(ValueError, match=r"c.tsv, line 4 must have a field 'question'"):
        second.text("question")


@pytest.mark.parametrize(("text", "message"), [("{", "line 1 must be JSON"), ("[1]", "line 1 must be a JSON object")])
def test_a_broken_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        list(read_lines(tmp_path / "a.jsonl"))


def test_broken_tables_and_lists_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("index\tquestion\n1\ta\tb\n")
    with pytest.raises(ValueError, match="line 2 must have as many cells as the head, got 1 more"):
        read_table(tmp_path / "a.tsv")
    (tmp_path / "a.json").write_text("3")
    with pytest.raises(ValueError, match="must hold a JSON list or object, got int"):
        list(read_objects(tmp_path / "a.json"))


def test_one_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.tsv").touch()
    assert find_file(tmp_path, ("*.txt", "*.tsv")) == tmp_path / "deep" / "a.tsv"
    (tmp_path / "b.tsv").touch()
    with pytest.raises(ValueError, match="must hold one file .*, got 2"):
        find_file(tmp_path, ("*.tsv",))
    with pytest.raises(ValueError, match=r"there must be a file \*.json"):
        find_file(tmp_path, ("*.json",))


def test_a_limit_is_spread() -> None:
    assert spaced(10, 4) == [0, 2, 5, 7]
    assert spaced(3, 10) == [0, 1, 2]
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        spaced(3, 0)
