"""Read a tar strictly: every header's checksum, every byte of a member and the end mark must be there."""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase

BLOCK = 512
LARGEST_IN_MEMORY_BYTES = 256 << 20
LARGEST_EXTENDED_HEADER_BYTES = 1 << 20
EXTENDED_KINDS = b"xgLK"
KINDS_SET_ASIDE = {b"1": "link", b"2": "link", b"3": "device", b"4": "device", b"6": "device"}
FOLDER = b"5"
OCTAL = re.compile(rb"[0-7]*")
# Only zero-padded checksums: among these two forms no flipped bit turns one into another of the same value.
CHECKSUM = re.compile(rb"[0-7]{6}\0 |[0-7]{7}\0")


class BrokenShard(ValueError):  # noqa: N818 (what it is, as a noun)
    """Refuse a shard that is no whole tar; carries the shard and the offset in bytes."""

    def __init__(self, shard: str, offset: int, what: str) -> None:
        """Say what was found at which offset."""
        super().__init__(
            f"a shard must be a whole, uncompressed tar: {shard} {what} at byte {offset}; "
            "fetch or write the shard again, or leave it out"
        )
        self.shard = shard
        self.offset = offset


@dataclass(frozen=True)
class Member:
    """Describe one member of a tar: where its bytes lie, their crc32, and why it must not be used, if so."""

    name: str
    offset: int
    size: int
    crc32: int
    data: bytes | None  # None above LARGEST_IN_MEMORY_BYTES
    fault: str | None = None


@dataclass(frozen=True)
class Header:
    """Hold the fields of a tar header that are used here."""

    name: bytes
    size: int
    kind: bytes


class TarStream:
    """Walk the members of a tar from front to back; afterwards `position` and `crc32` are those of the whole file."""

    def __init__(self, stream: BufferedIOBase, shard: str) -> None:
        """Begin at the first byte of an open file; `shard` is what messages call it."""
        self.stream = stream
        self.shard = shard
        self.position = 0
        self.crc32 = 0

    def members(self) -> Iterator[Member]:
        """Yield every file, link and device of the tar in order; folders are passed over.

        Raises BrokenShard when a checksum is wrong, a header is nonsense or the file ends too early.
        """
        extended: dict[str, bytes] = {}
        while True:
            offset = self.position
            block = self._take(BLOCK, "ends without the two zero blocks that close a tar")
            if not any(block):
                if extended:
                    raise self._broken(offset, "has an extended header without a member")
                return self._take_end()
            header = self._header(block, offset)
            if header.kind in EXTENDED_KINDS:
                extended |= self._extended(header, offset)
                continue
            if "size" in extended:
                header = Header(header.name, self._number(extended["size"], offset), header.kind)
            yield from self._member(header, extended, offset)
            extended = {}

    def _member(self, header: Header, extended: dict[str, bytes], offset: int) -> Iterator[Member]:
        """Yield the member behind a header, if it is one that counts."""
        raw = extended.get("path", header.name)
        fault = name_fault(raw)
        name = raw.decode("utf-8", "backslashreplace")
        if header.kind in KINDS_SET_ASIDE:
            if header.size:
                raise self._broken(offset, f"has a {KINDS_SET_ASIDE[header.kind]} with a payload")
            yield Member(name, self.position, 0, 0, b"", KINDS_SET_ASIDE[header.kind])
            return
        folder = header.kind == FOLDER or (header.kind == b"\0" and raw.endswith(b"/"))
        if header.kind not in (b"0", b"\0", b"7", FOLDER):
            raise self._broken(offset, f"has a member of an unknown kind {header.kind!r}")
        if any(key.startswith("GNU.sparse") for key in extended):
            fault = "sparse file"
        start = self.position
        data, crc32 = self._payload(header.size, offset)
        if not folder:
            yield Member(name, start, header.size, crc32, data, fault)

    def _header(self, block: bytes, offset: int) -> Header:
        try:
            return parse_header(block)
        except ValueError as error:
            if offset == 0 and block[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
                raise self._broken(offset, "is compressed") from error
            raise self._broken(offset, f"has a header with {error}") from error

    def _extended(self, header: Header, offset: int) -> dict[str, bytes]:
        """Read a pax or GNU header: what it says about the next member."""
        if header.size > LARGEST_EXTENDED_HEADER_BYTES:
            raise self._broken(offset, f"has an extended header of {header.size} bytes")
        data, _ = self._payload(header.size, offset)
        assert data is not None, "an extended header fits in memory"
        if header.kind == b"L":
            return {"path": data.removesuffix(b"\0")}
        if header.kind == b"K":  # the long target of a link
            return {}
        records: dict[str, bytes] = {}
        while data:
            length, space, _ = data.partition(b" ")
            end = self._number(length, offset) if space else 0
            key, equals, value = data[len(length) + 1 : end].partition(b"=")
            if not equals or end > len(data) or not value.endswith(b"\n"):
                raise self._broken(offset, "has a broken pax header")
            records[key.decode("utf-8", "backslashreplace")] = value[:-1]
            data = data[end:]
        if header.kind == b"g":
            if {"path", "size"} & set(records):
                raise self._broken(offset, "has a global pax header that names a path or a size")
            return {}
        return records

    def _number(self, text: bytes, offset: int) -> int:
        if not re.fullmatch(rb"[0-9]{1,18}", text):
            raise self._broken(offset, f"has {text[:20]!r} for a number")
        return int(text)

    def _payload(self, size: int, offset: int) -> tuple[bytes | None, int]:
        """Return the bytes of a member (None when they are too many) and their crc32; pass over the padding."""
        what = f"ends inside the member whose header stands at byte {offset}, cut"
        pieces, crc32, left = [], 0, size
        while left:
            piece = self._take(min(left, 16 << 20), what)
            crc32 = zlib.crc32(piece, crc32)
            left -= len(piece)
            if size <= LARGEST_IN_MEMORY_BYTES:
                pieces.append(piece)
        self._take(-size % BLOCK, what)
        return (b"".join(pieces) if size <= LARGEST_IN_MEMORY_BYTES else None), crc32

    def _take_end(self) -> None:
        """Check that nothing but zeros follows the first zero block, at least one whole block of them."""
        if any(self._take(BLOCK, "ends with one zero block, not two,")):
            raise self._broken(self.position - BLOCK, "has data behind a zero block")
        while piece := self.stream.read(1 << 20):
            if any(piece):
                raise self._broken(self.position, "has data behind its end mark")
            self._count(piece)
        if self.position % BLOCK:
            raise self._broken(self.position, "is cut inside a block")

    def _take(self, size: int, what: str) -> bytes:
        piece = self.stream.read(size)
        self._count(piece)
        if len(piece) < size:
            raise self._broken(self.position, what)
        return piece

    def _count(self, piece: bytes) -> None:
        self.position += len(piece)
        self.crc32 = zlib.crc32(piece, self.crc32)

    def _broken(self, offset: int, what: str) -> BrokenShard:
        return BrokenShard(self.shard, offset, what)


def parse_header(block: bytes) -> Header:
    """Read a header block; ValueError says in a few words what is wrong with it."""
    size = header_size(block)
    name = block[:100].rstrip(b"\0")  # a NUL with text behind it stays, to be seen
    if block[257:263] == b"ustar\0" and block[345] != 0:
        name = block[345:500].rstrip(b"\0") + b"/" + name
    return Header(name, size, block[156:157])


def header_size(block: bytes) -> int:
    """Read the size in a header block alone, its checksum checked; ValueError says what is wrong with it."""
    checksum = block[148:156]
    found = _sum(block) - sum(checksum) + len(checksum) * ord(" ")  # the field itself counts as blanks
    usual = checksum == b"%06o\0 " % found
    if not usual and (not CHECKSUM.fullmatch(checksum) or int(checksum.rstrip(b"\0 "), 8) != found):
        raise ValueError("a wrong checksum")
    return _size(block[124:136])


def _sum(block: bytes) -> int:
    """Add up the bytes of a header block; each half's sum is the low half of its adler32, which C adds up."""
    half = BLOCK // 2
    return (zlib.adler32(block[:half]) & 0xFFFF) + (zlib.adler32(block[half:]) & 0xFFFF) - 2


def name_fault(name: bytes) -> str | None:
    """Say why a member's name must not be used, None for a good one."""
    if b"\0" in name:
        return "NUL in the name"
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return "name not UTF-8"
    if name.startswith(b"/"):
        return "absolute name"
    return "'..' in the name" if b".." in name.split(b"/") else None


def _size(field: bytes) -> int:
    if field[0] == 0x80:  # base 256, for sizes above 8 GiB
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not OCTAL.fullmatch(digits):
        raise ValueError(f"the size {field!r}")
    return int(digits or b"0", 8)
