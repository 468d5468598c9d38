"""Strict tar reading: whole tars of every writer pass, anything cut or flipped is refused with its place."""

import io
import tarfile
from pathlib import Path

import pytest

from anymodal.data.tar import BrokenShard, Member, TarStream


def build(files: dict[str, bytes], format: int = tarfile.PAX_FORMAT, **fields: object) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            for field, value in fields.items():
                setattr(entry, field, value)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def walk(data: bytes) -> list[Member]:
    return list(TarStream(io.BytesIO(data), "a.tar").members())


SMALL = build({"a.txt": b"one", "b.txt": b"x" * 700})


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(format: int) -> None:
    files = {
        "a.txt": b"one",
        f"{'deep/' * 19}b.txt": b"",
        f"{'long' * 30 if format else 'c'}.txt": b"x" * 1300,
        "ü.json": b"{}",
    }
    data = build(files, format)
    found = walk(data)
    assert {member.name: member.data for member in found} == files
    assert all(data[member.offset : member.offset + member.size] == member.data for member in found)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [entry.offset_data for entry in tar] == [member.offset for member in found]


def test_every_cut_is_refused() -> None:
    end = 512 + 512 + 512 + 1024 + 1024  # two headers, their blocks, the end mark
    assert len(walk(SMALL[:end])) == 2
    for cut in [*range(0, end, 37), 511, 512, 1023, 1024, end - 1, end - 512, end + 1]:
        with pytest.raises(BrokenShard, match=r"a\.tar .* at byte") as caught:
            walk(SMALL[:cut])
        assert caught.value.shard == "a.tar"
        assert 0 <= caught.value.offset <= cut


def test_every_flipped_header_bit_is_refused() -> None:
    for bit in range(512 * 8):
        data = bytearray(SMALL)
        data[1024 + bit // 8] ^= 1 << bit % 8
        with pytest.raises(BrokenShard) as caught:
            walk(bytes(data))
        assert caught.value.offset == 1024


@pytest.mark.parametrize(
    ("name", "fault"),
    [("/etc/a.txt", "absolute name"), ("a/../b.txt", "'..' in the name"), ("../a.txt", "'..' in the name")],
)
def test_dangerous_names_are_marked(name: str, fault: str) -> None:
    assert [member.fault for member in walk(build({name: b"x"}))] == [fault]


def test_a_nul_in_a_name_is_marked() -> None:
    header = bytearray(build({"a.txt": b""})[:512])
    header[5:8] = b"\0.b"
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
    assert walk(bytes(header) + bytes(1024))[0].fault == "NUL in the name"


@pytest.mark.parametrize(
    ("kind", "fault"), [(tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "link"), (tarfile.CHRTYPE, "device"),
                        (tarfile.BLKTYPE, "device"), (tarfile.FIFOTYPE, "device")],
)  # fmt: skip
def test_links_and_devices_are_marked(kind: bytes, fault: str) -> None:
    assert [member.fault for member in walk(build({"a.txt": b""}, type=kind, linkname="/etc/passwd"))] == [fault]


def test_folders_are_passed_over() -> None:
    assert walk(build({"a": b""}, type=tarfile.DIRTYPE)) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends without the two zero blocks"),
        (b"\x1f\x8b" + bytes(2000), "is compressed"),
        (bytes(512), "one zero block, not two"),
        (SMALL + SMALL, "data behind its end mark"),
        (build({"a.txt": b""}, type=tarfile.GNUTYPE_SPARSE), "unknown kind b'S'"),
    ],
)
def test_what_is_no_tar_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BrokenShard, match=message):
        walk(data)


def test_the_whole_file_is_summed(tmp_path: Path) -> None:
    import zlib

    tar = TarStream(io.BytesIO(SMALL), "a.tar")
    assert len(list(tar.members())) == 2
    assert (tar.position, tar.crc32) == (len(SMALL), zlib.crc32(SMALL))
