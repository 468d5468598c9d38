"""The index of one shard: columns that say where each member lies, on disk and back."""

import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from anymodal.data.scan import Place, load_columns, load_summary, load_table, scan_shard, stage_index
from anymodal.data.tar import BrokenShard


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (("a.TXT", b"one"), ("a.json", b"{}"), ("sub/b.txt", b"two"), ("c.txt", b"")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return tmp_path / "a.tar"


def test_scan_says_where_members_lie(shard: Path) -> None:
    table = scan_shard(shard, image_keys=("png",))
    assert table.keys == ["a", "sub/b"]
    assert table.places(0) == [Place("txt", 512, 3, zlib.crc32(b"one")), Place("json", 1536, 2, zlib.crc32(b"{}"))]
    assert table.places(1) == [Place("txt", 2560, 3, zlib.crc32(b"two"))]
    assert table.summary.bad == {"caption empty": 1}
    assert table.summary.examples["caption empty"][:2] == ("c.txt", 3584)
    assert (table.summary.bytes, table.summary.crc32) == (10240, zlib.crc32(shard.read_bytes()))


def test_an_index_file_gives_the_same_table(shard: Path) -> None:
    table = scan_shard(shard, image_keys=("png",))
    target = shard.with_name("index.npz")
    stage_index(table, target).commit()
    again = load_table(target)
    assert again.summary == table.summary == load_summary(target)
    assert [again.places(row) for row in range(2)] == [table.places(row) for row in range(2)]
    assert np.array_equal(load_columns(target, ("offsets",))[0], [512, 1536, 2560])
    assert (str(again.offsets.dtype), str(again.crc32s.dtype), again.holds.shape) == ("int64", "uint32", (2,))


def test_scan_names_the_shard_that_is_broken(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(BrokenShard, match="the shard ends inside"):
        scan_shard(shard, image_keys=("png",), name="the shard")


def test_no_byte_of_an_index_file_can_be_flipped_unseen(shard: Path) -> None:
    target = shard.with_name("index.npz")
    stage_index(scan_shard(shard, image_keys=("png",)), target).commit()
    whole = target.read_bytes()
    want = load_table(target)
    for place in range(0, len(whole), 7):
        data = bytearray(whole)
        data[place] ^= 4
        target.write_bytes(bytes(data))
        try:
            found = load_table(target)
        except ValueError as error:
            assert "index.npz" in str(error)
            continue
        assert found.summary == want.summary  # a date or the like
        assert [found.places(row) for row in range(2)] == [want.places(row) for row in range(2)]
