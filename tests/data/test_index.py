"""The index: what it sets aside, what it refuses, and that no byte is used unchecked."""

import io
import json
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_iterator

from anymodal.data.index import BadSample, ShardIndex
from anymodal.data.scan import ShardTable, load_summary, load_table, scan_shard, stage_index
from anymodal.data.shards import Sample, write_shards


def picture(kind: str = "PNG", colour: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(stream, kind)
    return stream.getvalue()


GOOD = {"png": picture(), "txt": b"a red square"}


def pack(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Write a shard as others do: no index, any member in any order."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def foreign(path: Path, count: int = 6) -> Path:
    """Write a shard with the members that img2dataset makes."""
    members = []
    for number in range(count):
        members += [
            (f"{number:05d}.jpg", picture("JPEG")),
            (f"{number:05d}.json", json.dumps({"url": "x", "status": "success"}).encode()),
            (f"{number:05d}.txt", b"a red square"),
        ]
    return pack(path, members)


def test_a_foreign_shard_reads_as_webdataset_reads_it(tmp_path: Path) -> None:
    shard = foreign(tmp_path / "00000.tar")
    index = ShardIndex.open(str(shard))
    with shard.open("rb") as stream:
        theirs = list(group_by_keys({**member, "__url__": ""} for member in tar_file_iterator(stream)))
    assert index.shard_sizes == (6,)
    assert len(index) == len(theirs) == 6
    for number, sample in enumerate(theirs):
        mine = index.read(number)
        assert mine.key == index.key(number) == sample["__key__"]
        assert mine.members == {name: data for name, data in sample.items() if not name.startswith("__")}


def test_the_pass_is_made_once_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [str(foreign(tmp_path / f"{number}.tar")) for number in range(3)]
    Path(shards[2]).write_bytes(Path(shards[2]).read_bytes()[:-20_000])
    with pytest.raises(ValueError, match=r"2\.tar ends"):
        ShardIndex.open(shards)
    assert (tmp_path / "1.tar.index.npz").exists()
    foreign(tmp_path / "2.tar")
    passes = []

    def scan(path: Path, **options: Any) -> ShardTable:
        passes.append(path.name)
        return scan_shard(path, **options)

    monkeypatch.setattr("anymodal.data.index.scan_shard", scan)
    assert len(ShardIndex.open(shards)) == 18
    assert len(ShardIndex.open(shards)) == 18
    assert passes == ["2.tar"]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"png": picture()[:40], "txt": b"x"}, "picture "),
        ({"png": b"", "txt": b"x"}, "picture "),
        ({"png": picture(), "txt": b" \n"}, "caption empty"),
        ({"png": picture(), "txt": b"\xff\xfe"}, "caption not UTF-8"),
        ({"png": picture(), "json": b"{"}, "json broken"),
        ({"png": picture(), "json": b"[]"}, "json broken"),
        ({"png": picture(), "json": b"[" * 100_000}, "json broken"),
        ({"png": picture(), "json": b'{"captions": "x"}'}, "captions broken"),
        ({"png": picture(), "json": b'{"captions": ["\\ud800"]}'}, "captions broken"),
        ({"png": picture(), "json": b'{"questions": [{"question": "x"}]}'}, "questions broken"),
        ({"png": picture(), "json": b'{"turns": [{"role": "system", "parts": [{"text": "x"}]}]}'}, "turns broken"),
        ({"png": picture(), "json": b'{"turns": [{"role": "user", "parts": [{"look": "webp"}]}]}'}, "member missing"),
        ({"json": b"{}"}, "no picture, caption or turns"),
        ({"gif": b"GIF89a"}, "no picture, caption or turns"),
    ],
)
def test_bad_samples_are_set_aside_by_reason(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    write_shards([Sample("0", GOOD), Sample("1", members), Sample("2", GOOD)], f"{tmp_path}/%d.tar")
    index = ShardIndex.open(f"{tmp_path}/0.tar", max_bad_fraction=0.5)
    assert [index.read(number).key for number in range(len(index))] == ["0", "2"]
    assert list(index.bad.values()) == [1]
    assert next(iter(index.bad)).startswith(reason)
    with pytest.raises(
        ValueError, match=rf"got 1 of 3 .*{reason}.*first is 1\..* of .*0\.tar at byte .*max_bad_fraction"
    ):
        ShardIndex.open(f"{tmp_path}/0.tar")


def test_text_only_pictures_only_and_turns_only_are_legal(tmp_path: Path) -> None:
    turns = (
        b'{"turns": [{"role": "user", "parts": [{"text": "Hello"}]}, {"role": "assistant", "parts": [{"text": "Hi"}]}]}'
    )
    samples = [
        Sample("0", {"txt": b"text"}), Sample("1", {"png": picture()}), Sample("2", {"json": turns}), Sample("3", GOOD),
    ]  # fmt: skip
    write_shards(samples, f"{tmp_path}/%d.tar")
    assert len(ShardIndex.open(f"{tmp_path}/0.tar")) == 4
    both = ShardIndex.open(f"{tmp_path}/0.tar", needs=("picture", "caption"))
    assert (both.shard_sizes, both.read(0).key, both.bad) == ((1,), "3", {"no caption": 1, "no picture": 2})
    with pytest.raises(ValueError, match="at least one sample must hold codes, none of 4 does"):
        ShardIndex.open(f"{tmp_path}/0.tar", needs=("codes",))


def test_names_and_places_that_mislead_are_set_aside(tmp_path: Path) -> None:
    shard = pack(
        tmp_path / "a.tar",
        [("a.txt", b"1"), ("b.txt", b"2"), ("a.json", b"{}"), ("/etc/c.txt", b"3"), ("README", b"4"), ("d.txt", b"5"),
         ("e.txt", b"6"), ("e.txt", b"7")],
    )  # fmt: skip
    index = ShardIndex.open(str(shard), max_bad_fraction=1.0)
    assert [index.key(number) for number in range(len(index))] == ["b", "d"]
    assert index.bad == {
        "absolute name": 1, "member twice": 1, "members not adjacent": 2, "name without key and extension": 1,
    }  # fmt: skip


def test_read_says_what_changed_since_the_index(tmp_path: Path) -> None:
    shard = foreign(tmp_path / "a.tar")
    index = ShardIndex.open(str(shard))
    offset = index._table(0)[0].places(4)[2].offset
    with shard.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"A")
    with pytest.raises(BadSample, match="crc32 differs") as caught:
        index.read(4)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.reason, error.shard, error.key, error.offset) == ("crc32 differs", str(shard), "00004", offset)
    assert index.read(3).members["txt"] == b"a red square"


def test_a_changed_shard_is_refused_until_its_index_goes(tmp_path: Path) -> None:
    shard = foreign(tmp_path / "a.tar")
    before = ShardIndex.open(str(shard)).fingerprint
    foreign(shard, count=40)
    with pytest.raises(ValueError, match=r"a\.tar has changed, it had \d+ bytes and has \d+; .*delete .*index\.npz"):
        ShardIndex.open(str(shard))
    (tmp_path / "a.tar.index.npz").unlink()
    index = ShardIndex.open(str(shard))
    assert len(index) == 40
    assert index.fingerprint != before


def test_a_broken_index_is_named(tmp_path: Path) -> None:
    shard = foreign(tmp_path / "a.tar")
    side = tmp_path / "a.tar.index.npz"
    ShardIndex.open(str(shard))
    side.write_bytes(side.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"index\.npz is not .*delete it"):
        ShardIndex.open(str(shard))


def test_a_folder_that_cannot_be_written_asks_for_an_index_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shard = foreign(data / "a.tar")
    real = Path.open

    def refuse(self: Path, mode: str = "r", **options: object) -> object:
        if "w" in mode and self.parent == data:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, mode, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=r"index of .*a\.tar .*Permission denied.*index_folder"):
        ShardIndex.open(str(shard))
    index = ShardIndex.open(str(shard), index_folder=tmp_path / "indexes")
    assert len(index) == 6
    assert [path.name for path in data.iterdir()] == ["a.tar"]
    assert len(list((tmp_path / "indexes").iterdir())) == 1


def test_pictures_left_unverified_are_verified_when_asked(tmp_path: Path) -> None:
    shard = pack(tmp_path / "a.tar", [("0.png", b"no picture"), ("0.txt", b"x"), ("1.txt", b"y")])
    assert len(ShardIndex.open(str(shard), verify_pictures=False)) == 2
    assert len(ShardIndex.open(str(shard), max_bad_fraction=0.5)) == 1


def test_an_index_of_before_questions_were_noted_is_made_again(tmp_path: Path) -> None:
    asked = b'{"questions": [{"question": "who ?", "answer": "a dog"}]}'
    write_shards([Sample("0", GOOD), Sample("1", {**GOOD, "json": asked})], f"{tmp_path}/%d.tar")
    shard, side = tmp_path / "0.tar", tmp_path / "0.tar.index.npz"
    table = load_table(side)
    plain = replace(table.summary, questions_noted=False, holds={3: 2})
    old = replace(table, summary=plain, holds=np.array([3, 3], dtype=np.uint8))
    stage_index(old, side).commit()
    found = ShardIndex.open(str(shard), needs=("questions",))
    assert [found.read(number).key for number in range(len(found))] == ["1"]
    assert load_summary(side) == table.summary
    whole = ShardIndex.open(str(shard))
    assert whole.holding(("picture", "caption")) is whole


def test_an_index_crosses_processes(tmp_path: Path) -> None:
    index = ShardIndex.open(str(foreign(tmp_path / "a.tar")))
    index.read(0)
    assert pickle.loads(pickle.dumps(index)).read(5).key == "00005"
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.write(writer, index.read(3).key.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"00003"
    assert index.read(2).key == "00002"
    os.close(reader)
    os.close(writer)


def test_numbers_outside_are_refused(tmp_path: Path) -> None:
    index = ShardIndex.open(str(foreign(tmp_path / "a.tar")))
    with pytest.raises(IndexError, match="sample 6 of 6"):
        index.read(6)
    with pytest.raises(IndexError):
        index.read(-1)
