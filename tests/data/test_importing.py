"""Reading folders and tables: bytes are copied, mistakes are named."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from anymodal.data.importing import Sieve, folder_samples, table_samples


def save(path: Path, size: tuple[int, int] = (6, 4)) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path.read_bytes()


def test_a_folder_gives_a_sample_a_name(tmp_path: Path) -> None:
    first = save(tmp_path / "a.b.JPG")
    save(tmp_path / "deep" / "c.png")
    (tmp_path / "a.b.txt").write_text("a red square")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "text.txt").write_text("text alone")
    samples = {sample.key: sample.members for sample in folder_samples(tmp_path)}
    assert list(samples) == ["a_b", "deep/c", "text"]
    assert samples["a_b"] == {"jpg": first, "txt": b"a red square"}
    assert list(samples["deep/c"]) == ["png"]


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing does not"):
        list(folder_samples(tmp_path / "missing"))
    with pytest.raises(ValueError, match="holds none"):
        list(folder_samples(tmp_path))
    save(tmp_path / "a.png")
    save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png"):
        list(folder_samples(tmp_path))
    with pytest.raises(ValueError, match=r"a folder of pictures must exist, .*a\.jpg is a file"):
        list(folder_samples(tmp_path / "a.jpg"))


def test_a_picture_of_another_kind_never_leaves_its_caption_alone(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.bmp")
    (tmp_path / "b.txt").write_text("a red square")
    with pytest.raises(ValueError, match=r"must be jpg, .*, 1 are not: .*b\.bmp; convert or remove them"):
        list(folder_samples(tmp_path))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_table_gives_a_sample_a_row(tmp_path: Path, kind: str) -> None:
    data = save(tmp_path / "pictures" / "a.png")
    rows = {
        "csv": 'path,title\npictures/a.png,"red, square"\n',
        "tsv": "path\ttitle\npictures/a.png\tred, square\n",
        "jsonl": '{"path": "pictures/a.png", "title": "red, square"}\n\n',
    }
    table = tmp_path / f"rows.{kind}"
    table.write_text(rows[kind])
    samples = list(table_samples(table, picture_column="path", caption_column="title"))
    assert [(sample.key, sample.members) for sample in samples] == [("00000000", {"png": data, "txt": b"red, square"})]


def test_turns_carry_their_pictures(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a.png"), save(tmp_path / "b.jpg", (8, 8))
    turns = [
        {"role": "user", "parts": [{"look": "a.png"}, {"look": "b.jpg"}, {"text": "Which is red?"}]},
        {"role": "assistant", "parts": [{"text": "both"}, {"draw": "a.png"}]},
    ]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"turns": turns}))
    (sample,) = Sieve(max_bad_fraction=0.0)(table_samples(tmp_path / "chat.jsonl"))
    assert (sample.members["png"], sample.members["1.jpg"]) == (first, second)
    stored = json.loads(sample.members["json"])["turns"]
    assert stored[0]["parts"][:2] == [{"look": "png"}, {"look": "1.jpg"}]
    assert stored[1]["parts"][1] == {"draw": "png"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "image,title\na.png,x\n", r"column 'caption'.*has image, title.*caption_column"),
        ("a.csv", "image,caption\nb.png,x\n", r"line 2 of .*b\.png is not \(No such file"),
        ("a.csv", "image,caption\n", "holds none"),
        ("a.csv", "image,caption\na.png,x,y\n", "more fields than columns"),
        ("a.csv", "image,caption\na.gif,x\n", r"must be one of jpg.*a\.gif"),
        ("a.jsonl", "{", "line 1 of .* is not"),
        ("a.jsonl", "[]", "is a list"),
        ("a.xlsx", "", r"must be \.csv"),
    ],
)
def test_a_table_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        list(table_samples(tmp_path / name))


def test_a_table_must_exist_and_be_utf8(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.csv does not"):
        list(table_samples(tmp_path / "none.csv"))
    (tmp_path / "a.csv").write_bytes(b"image,caption\n\xff\n")
    with pytest.raises(ValueError, match="must be UTF-8"):
        list(table_samples(tmp_path / "a.csv"))


def test_the_sieve_shrinks_and_counts(tmp_path: Path) -> None:
    small = save(tmp_path / "a.png", (20, 10))
    save(tmp_path / "b.png", (300, 90))
    (tmp_path / "c.png").write_bytes(small[:50])
    sieve = Sieve(max_bad_fraction=0.4, size=30)
    kept = {sample.key: sample.members["png"] for sample in sieve(folder_samples(tmp_path))}
    assert kept["a"] == small
    assert Image.open(io.BytesIO(kept["b"])).size == (100, 30)
    assert (sieve.good, sieve.bad.total(), dict(sieve.holds)) == (2, 1, {"picture": 2})
    with pytest.raises(ValueError, match=r"got 1 of 3 .*first is c: picture"):
        list(Sieve(max_bad_fraction=0.1)(folder_samples(tmp_path)))
