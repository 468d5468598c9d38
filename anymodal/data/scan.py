"""Index one shard: which samples it holds, where their members lie, and which must be set aside."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from anymodal.data.checks import SetAside, check_members
from anymodal.data.files import StagedFile
from anymodal.data.tar import Member, TarStream

FORMAT = 1
SUFFIX = ".index.npz"
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, NotImplementedError, BadZipFile)
"""What reading an npz file raises that is none: a place before its beginning is an OSError."""
KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^./]+)[.]([^/]+)", re.DOTALL)  # as webdataset splits a member's name


class Place(NamedTuple):
    """Say where one member of a sample lies in its shard."""

    extension: str
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Hold what is known of an indexed shard as a whole.

    `bad` counts what was set aside by reason, `examples` names the first of each: member, offset, message. `holds`
    counts the samples by the value of their `Holds`; indexes of earlier versions did not note questions in it.
    """

    bytes: int
    crc32: int
    image_keys: tuple[str, ...]
    pictures_verified: bool
    bad: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, tuple[str, int, str]] = field(default_factory=dict)
    holds: Mapping[int, int] = field(default_factory=dict)
    extensions: tuple[str, ...] = ()
    questions_noted: bool = False

    def serves(self, *, image_keys: tuple[str, ...], verify_pictures: bool) -> bool:
        """Tell whether the index was made as it is wanted."""
        return self.image_keys == image_keys and self.pictures_verified >= verify_pictures and self.questions_noted


@dataclass(frozen=True, kw_only=True)
class ShardTable:
    """Hold the index of one shard in columns: a row a sample (`keys`, `holds`, `firsts`) and a row a member."""

    summary: Summary
    key_bytes: NDArray[np.uint8]
    key_ends: NDArray[np.int64]
    holds: NDArray[np.uint8]
    firsts: NDArray[np.int64]  # the first member of each sample, and the number of members
    extensions: NDArray[np.uint32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    crc32s: NDArray[np.uint32]

    def __len__(self) -> int:
        """Return the number of good samples."""
        return len(self.holds)

    @cached_property
    def keys(self) -> list[str]:
        """The keys of the samples in order."""
        text = self.key_bytes.tobytes()
        return [text[start:end].decode() for start, end in zip([0, *self.key_ends[:-1]], self.key_ends, strict=True)]

    @cached_property
    def _members(self) -> NDArray[np.int64]:
        return np.stack([self.extensions, self.offsets, self.sizes, self.crc32s], axis=1, dtype=np.int64)

    def places(self, row: int) -> list[Place]:
        """Return where the members of a sample lie."""
        names = self.summary.extensions
        members = self._members[self.firsts[row] : self.firsts[row + 1]].tolist()
        return [Place(names[name], offset, size, crc32) for name, offset, size, crc32 in members]

    def save(self, stream: BinaryIO) -> None:
        """Write the index as an npz file; the same table gives the same bytes."""
        header = json.dumps(_plain(self.summary), sort_keys=True).encode()
        np.savez(
            stream, header=np.frombuffer(header, dtype=np.uint8), **{name: getattr(self, name) for name in COLUMNS}
        )


COLUMNS = ("key_bytes", "key_ends", "holds", "firsts", "extensions", "offsets", "sizes", "crc32s")


def load_summary(path: Path) -> Summary:
    """Read what an index file says of its shard as a whole."""
    return _load(path, ())[0]


def load_table(path: Path) -> ShardTable:
    """Read an index file whole."""
    summary, columns = _load(path, COLUMNS)
    return ShardTable(summary=summary, **columns)


def load_columns(path: Path, columns: Sequence[str]) -> list[NDArray[Any]]:
    """Read some columns of an index file."""
    return list(_load(path, columns)[1].values())


def stage_index(table: ShardTable, target: Path) -> StagedFile:
    """Write an index file beside its target; the caller commits it."""
    staged = StagedFile(target)
    with staged.open() as stream:
        table.save(stream)
    return staged


def scan_shard(
    path: Path, *, image_keys: tuple[str, ...], verify_pictures: bool = True, name: str | None = None
) -> ShardTable:
    """Read a shard from front to back and index it; `name` is what messages call it.

    Raises BrokenShard when the shard is no whole tar.
    """
    scan = _Scan(image_keys, verify_pictures)
    with path.open("rb") as stream:
        tar = TarStream(stream, name or str(path))
        for member in tar.members():
            scan.add(member)
        scan.close_sample()
    return scan.table(tar.position, tar.crc32)


class _Scan:
    """Gather the members of a tar into samples."""

    def __init__(self, image_keys: tuple[str, ...], verify_pictures: bool) -> None:
        self.image_keys = image_keys
        self.verify_pictures = verify_pictures
        self.open_key: str | None = None
        self.open_members: list[tuple[str, Member]] = []
        self.samples: dict[str, tuple[int, list[tuple[str, Member]]]] = {}  # key -> what it holds, its members
        self.refused_keys: set[str] = set()
        self.bad: Counter[str] = Counter()
        self.examples: dict[str, tuple[str, int, str]] = {}

    def add(self, member: Member) -> None:
        """Take the next member of the tar."""
        match = KEY_AND_EXTENSION.fullmatch(member.name)
        if member.fault or not match:
            self.set_aside(SetAside(member.fault or "name without key and extension"), member)
            return
        key, extension = match.groups()
        if key != self.open_key:
            self.close_sample()
            self.open_key = key
        self.open_members.append((extension.lower(), member))

    def close_sample(self) -> None:
        """Check the sample whose members have been gathered."""
        key, members = self.open_key, self.open_members
        self.open_key, self.open_members = None, []
        if key is None:
            return
        try:
            if key in self.samples or key in self.refused_keys:
                raise SetAside("members not adjacent", f"more members of {key!r} stand earlier in the shard")
            data = {extension: member.data for extension, member in members if member.data is not None}
            if len({extension for extension, _ in members}) < len(members):
                raise SetAside("member twice", ", ".join(extension for extension, _ in members))
            if len(data) < len(members):
                raise SetAside("member too large")
            holds = check_members(data, image_keys=self.image_keys, verify_pictures=self.verify_pictures)
        except SetAside as refusal:
            self.set_aside(refusal, members[0][1])
            self.refused_keys.add(key)
            if self.samples.pop(key, None):  # which half is the sample cannot be told, so neither is used
                self.bad[refusal.reason] += 1
            return
        self.samples[key] = (int(holds), [(extension, _without_data(member)) for extension, member in members])

    def set_aside(self, refusal: SetAside, member: Member) -> None:
        self.bad[refusal.reason] += 1
        self.examples.setdefault(refusal.reason, (member.name, member.offset, str(refusal)))

    def table(self, size: int, crc32: int) -> ShardTable:
        """Lay the samples out in columns."""
        holds = [holds for holds, _ in self.samples.values()]
        members = [member for _, members in self.samples.values() for member in members]
        extensions = sorted({extension for extension, _ in members})
        number = {extension: place for place, extension in enumerate(extensions)}
        keys = [key.encode() for key in self.samples]
        counts = [len(members) for _, members in self.samples.values()]
        return ShardTable(
            summary=Summary(
                bytes=size,
                crc32=crc32,
                image_keys=self.image_keys,
                pictures_verified=self.verify_pictures,
                bad=dict(sorted(self.bad.items())),
                examples=self.examples,
                holds=dict(sorted(Counter(holds).items())),
                extensions=tuple(extensions),
                questions_noted=True,
            ),
            key_bytes=np.frombuffer(b"".join(keys), dtype=np.uint8),
            key_ends=np.cumsum([len(key) for key in keys], dtype=np.int64),
            holds=np.array(holds, dtype=np.uint8),
            firsts=np.cumsum([0, *counts], dtype=np.int64),
            extensions=np.array([number[extension] for extension, _ in members], dtype=np.uint32),
            offsets=np.array([member.offset for _, member in members], dtype=np.int64),
            sizes=np.array([member.size for _, member in members], dtype=np.int64),
            crc32s=np.array([member.crc32 for _, member in members], dtype=np.uint32),
        )


def _without_data(member: Member) -> Member:
    return Member(member.name, member.offset, member.size, member.crc32, None)


def _plain(summary: Summary) -> dict[str, Any]:
    return {"format": FORMAT} | {name: getattr(summary, name) for name in Summary.__dataclass_fields__}


def _load(path: Path, columns: Sequence[str]) -> tuple[Summary, dict[str, Any]]:
    """Read the header and some columns of an index file; the zip's own crc32s vouch for them."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            header = json.loads(arrays["header"].tobytes())
            if header.pop("format", None) != FORMAT:
                raise ValueError("it was made by another version")
            summary = Summary(
                **header
                | {"image_keys": tuple(header["image_keys"]), "extensions": tuple(header["extensions"])}
                | {"holds": {int(holds): count for holds, count in header["holds"].items()}}
                | {"examples": {reason: tuple(example) for reason, example in header["examples"].items()}}
            )
            return summary, {name: arrays[name] for name in columns}
    except (FileNotFoundError, PermissionError):
        raise
    except BROKEN as error:
        raise ValueError(
            f"an index must be readable: {path} is not ({error}); delete it, and it is made again"
        ) from error
