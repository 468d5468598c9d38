"""Shards that are cut or flipped: each is refused or set aside with its name and the place, none is used silently."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from anymodal.data.index import BadSample, ShardIndex

BLOCK = 512
SUFFIX = ".index.npz"


class Tar(NamedTuple):
    """A shard as img2dataset writes it, what it holds, and where."""

    whole: bytes
    side: bytes  # its index
    samples: list[dict[str, bytes]]
    headers: list[int]
    members: list[tuple[int, int]]  # of each the first byte and the size
    end: int  # of the last member, with its padding


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Tar:
    path, random = tmp_path_factory.mktemp("tar") / "a.tar", np.random.default_rng(0)
    samples = []
    for number in range(4):
        stream = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(stream, "JPEG")
        samples.append({"jpg": stream.getvalue(), "json": b"{}", "txt": f"square {number}".encode()})
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for number, sample in enumerate(samples):
            for extension, data in sample.items():
                entry = tarfile.TarInfo(f"{number:05d}.{extension}")
                entry.size = len(data)
                file.addfile(entry, io.BytesIO(data))
    with tarfile.open(path) as file:
        entries = list(file)
    ShardIndex.open(str(path))
    places = [(entry.offset_data, entry.size) for entry in entries]
    end = max(start - -size // BLOCK * BLOCK for start, size in places)
    index = path.with_name(path.name + SUFFIX).read_bytes()
    return Tar(path.read_bytes(), index, samples, [entry.offset for entry in entries], places, end)


def outcome(folder: Path, data: bytes, index: bytes | None) -> tuple[str, list[dict[str, bytes]]]:
    """Open a shard and read all of it; return what was said against it, "" for nothing, and the samples."""
    shard = folder / "a.tar"
    shard.write_bytes(data)
    side = shard.with_name(shard.name + SUFFIX)
    side.unlink(missing_ok=True)
    if index is not None:
        side.write_bytes(index)
    said, samples = "", []
    try:
        found = ShardIndex.open(str(shard))
    except ValueError as error:
        return str(error), []
    for number in range(len(found)):
        try:
            samples.append(dict(found.read(number).members))
        except BadSample as error:
            said += str(error)
    return said, samples


def cuts(tar: Tar, count: int) -> Iterator[int]:
    """Yield every border of headers and members and of their padding, then random places."""
    for header, (start, size) in zip(tar.headers, tar.members, strict=True):
        for border in (header, start, start + size, start - -size // BLOCK * BLOCK):
            yield from (border - 1, border, border + 1) if border else (0, 1)
    yield from (tar.end + 1, tar.end + BLOCK, tar.end + 2 * BLOCK - 1)
    yield from (int(place) for place in np.random.default_rng(1).integers(0, tar.end + 2 * BLOCK, count))


@pytest.mark.parametrize("indexed", [False, True])
def test_no_cut_is_silent(tmp_path: Path, tar: Tar, long: bool, tally: Any, indexed: bool) -> None:
    places = list(cuts(tar, 1000 if long else 100))
    for place in places:
        with tally.fault():
            said, samples = outcome(tmp_path, tar.whole[:place], tar.side if indexed else None)
            assert not samples, f"cut at {place}"
            assert "a.tar" in said, f"cut at {place}"
            assert "byte" in said, f"cut at {place}"
    print(f"{len(places)} cuts, none silent")


@pytest.mark.parametrize("indexed", [False, True])
def test_no_flip_in_a_header_is_silent(tmp_path: Path, tar: Tar, long: bool, tally: Any, indexed: bool) -> None:
    random = np.random.default_rng(2)
    for _ in range(1000 if long else 100):
        header, bit = int(random.choice(tar.headers)), int(random.integers(8 * BLOCK))
        data = bytearray(tar.whole)
        data[header + bit // 8] ^= 1 << bit % 8
        with tally.fault():
            said, samples = outcome(tmp_path, bytes(data), tar.side if indexed else None)
            assert all(sample in tar.samples for sample in samples), f"bit {bit} of the header at {header}"
            assert len(samples) < len(tar.samples), f"bit {bit} of the header at {header}"
            assert "a.tar" in said, f"bit {bit} of the header at {header}"
            assert str(header) in said or str(header + BLOCK) in said, f"bit {bit} of the header at {header}: {said}"


def test_no_flip_in_a_payload_is_silent(tmp_path: Path, tar: Tar, long: bool, tally: Any) -> None:
    """A tar has no checksum of its payloads: the index that was made with the shard, or at its first reading, has."""
    random = np.random.default_rng(3)
    for _ in range(1000 if long else 100):
        number = int(random.integers(len(tar.members)))
        start, size = tar.members[number]
        bit = int(random.integers(8 * size))
        data = bytearray(tar.whole)
        data[start + bit // 8] ^= 1 << bit % 8
        with tally.fault():
            said, samples = outcome(tmp_path, bytes(data), tar.side)
            assert samples == [sample for place, sample in enumerate(tar.samples) if place != number // 3]
            assert said == f"crc32 differs: sample '{number // 3:05d}' of {tmp_path / 'a.tar'} at byte {start}"


def test_padding_is_read_by_no_one(tmp_path: Path, tar: Tar) -> None:
    start, size = tar.members[2]
    data = bytearray(tar.whole)
    data[start + size] ^= 1
    assert outcome(tmp_path, bytes(data), tar.side) == ("", tar.samples)
