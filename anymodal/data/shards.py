"""Samples and the webdataset shards that hold them: write them, find them."""

import glob
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from anymodal.data.checks import IMAGE_KEYS
from anymodal.data.files import StagedFile
from anymodal.data.remote import expand_remote
from anymodal.data.scan import SUFFIX, Summary, scan_shard, stage_index
from anymodal.data.tar import name_fault

COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".lz4", ".zip")
PATTERN = re.compile(r"([^%]*)%(?:0\d+)?d([^%]*)\.tar")
EXTENSION = re.compile(r"[a-z0-9][a-z0-9_.-]*")


@dataclass(frozen=True)
class Sample:
    """Hold one sample: its key and its members, extension -> bytes.

    `codes` are those that do not stand among the members but in records beside the shard, by the name that they would
    have there.

    >>> Sample("000", {"txt": b"a red apple"}).members["txt"]
    b'a red apple'
    """

    key: str
    members: Mapping[str, bytes]
    codes: Mapping[str, NDArray[Any]] = field(default_factory=dict, compare=False)


def write_shards(
    samples: Iterable[Sample],
    pattern: str,
    *,
    samples_per_shard: int = 1000,
    overwrite: bool = False,
    pictures_verified: bool = False,
) -> list[Path]:
    """Write samples into numbered shards with their indexes, all of them or none; return the shards.

    `pattern` holds one number, as in "out/train-%06d.tar". The same samples give the same bytes. Shards take their
    names only when the last one is written, so that an interrupted run leaves nothing to clean up; with `overwrite`,
    older shards of the pattern are replaced then, surplus ones removed. What is wrong with a picture or a caption is
    noted in the index, where `ShardIndex.open` counts it; `pictures_verified` says that every picture has been decoded
    already, so that this need not happen twice.

    Raises ValueError when shards of the pattern exist, there are no samples, a key or a member's name cannot stand in a
    tar, or the disk is full.
    """
    old = _existing(pattern)
    if old and not overwrite:
        raise ValueError(
            f"{pattern} must name shards that do not exist yet, but {old[0]} does ({len(old)} in all); "
            "choose another place or set overwrite"
        )
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
    folder = Path(pattern).parent
    folder.mkdir(parents=True, exist_ok=True)
    for path in _orphans(pattern):
        path.unlink()
    shards: list[StagedFile] = []
    indexes: list[StagedFile] = []
    try:
        for number, group in enumerate(_groups(samples, samples_per_shard)):
            shard, index, _ = stage_shard(group, Path(pattern % number), pictures_verified=pictures_verified)
            shards.append(shard)
            indexes.append(index)
        if not shards:
            raise ValueError(f"shards hold at least one sample, got none for {pattern}; look at what is packed")
        for path in old:
            path.with_name(path.name + SUFFIX).unlink(missing_ok=True)
        for shard, index in zip(shards, indexes, strict=True):
            shard.commit()
            index.commit()
    except BaseException:
        for staged in shards + indexes:
            staged.discard()
        raise
    written = [shard.target for shard in shards]
    for path in set(old) - set(written):
        path.unlink()
    return written


def stage_shard(
    samples: Sequence[Sample], target: Path, *, pictures_verified: bool = False
) -> tuple[StagedFile, StagedFile, Summary]:
    """Write a shard and its index beside their places; the caller commits both. Return them, and what the index says.

    Raises ValueError as `write_shards` does; nothing is left then.
    """
    shard = StagedFile(target)
    with shard.open() as stream:
        _write_tar(stream, samples)
    try:
        table = scan_shard(shard.staged, image_keys=IMAGE_KEYS, verify_pictures=not pictures_verified, name=str(target))
        summary = replace(table.summary, pictures_verified=True)
        index = stage_index(replace(table, summary=summary), target.with_name(target.name + SUFFIX))
    except BaseException:
        shard.discard()
        raise
    return shard, index, summary


def expand(patterns: str | Sequence[str]) -> list[str]:
    """Return the shards that patterns name, in order: braces, globs, folders, lists, and "::" between patterns.

    Remote shards are named by an address, such as "s3://bucket/train-{000..010}.tar".

    Raises ValueError for a pattern that matches nothing, a local shard that is missing, one that is named twice or
    compressed, and a pipe.

    >>> expand("missing-{000..001}.tar")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: every shard must exist: missing-000.tar does not (2 of the 2 of missing-{000..001}.tar); ...
    """
    given = [patterns] if isinstance(patterns, str) else list(patterns)
    pieces = [piece for pattern in given for piece in str(pattern).split("::") if piece]
    if not pieces:
        raise ValueError("shards must be named, got none; give a pattern like 'data/train-{000..010}.tar'")
    shards = [shard for piece in pieces for shard in _expand_one(piece)]
    for shard in shards:
        if shard.endswith(COMPRESSED):
            raise ValueError(
                f"a shard must be an uncompressed tar, so that a sample can be read by its offset, got {shard}; "
                "unpack it with gunzip or its like"
            )
    twice = [shard for shard, before in zip(sorted(shards)[1:], sorted(shards), strict=False) if shard == before]
    if twice:
        raise ValueError(
            f"a shard may be named once, {twice[0]} is named again; to see it more often give it a pattern of its own, "
            "and that a larger share of data.ratios"
        )
    return shards


def _expand_one(pattern: str) -> list[str]:
    from braceexpand import braceexpand  # it comes with webdataset

    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", pattern):
        return expand_remote(pattern)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", pattern):
        raise ValueError(f"a shard must be a file or an address, got {pattern}; pipes are not read, fetch it first")
    if Path(pattern).is_dir():
        found = sorted(glob.glob(f"{glob.escape(pattern)}/*.tar"))
        if not found:
            raise ValueError(f"a folder of shards must hold .tar files, {pattern} holds none")
        return found
    if Path(pattern).is_file():  # whatever signs its name holds
        return [pattern]
    try:
        names = list(braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"braces must be balanced, got {pattern}: {error}") from error
    shards = list(chain.from_iterable(_glob(name) if glob.has_magic(name) else [name] for name in names))
    missing = [shard for shard in shards if not Path(shard).is_file()]
    if missing:
        raise ValueError(
            f"every shard must exist: {missing[0]} does not ({len(missing)} of the {len(shards)} of {pattern}); "
            "fetch it or change the pattern"
        )
    return shards


def _glob(pattern: str) -> list[str]:
    if Path(pattern).is_file():
        return [pattern]
    found = sorted(glob.glob(pattern))
    if not found:
        raise ValueError(f"a pattern must match at least one shard, {pattern} matches none; look at the path")
    return found


def _existing(pattern: str) -> list[Path]:
    """Return the shards that a pattern has already made, in order."""
    parts = PATTERN.fullmatch(Path(pattern).name)
    if not parts or "%" in str(Path(pattern).parent):
        raise ValueError(
            f"a shard pattern must hold one number and end in .tar, as in 'train-%06d.tar', got {pattern!r}"
        )
    return _named(pattern, re.compile(f"{re.escape(parts[1])}[0-9]+{re.escape(parts[2])}[.]tar"))


def _orphans(pattern: str) -> list[Path]:
    """Return what a writer of this pattern left when it was killed."""
    parts = PATTERN.fullmatch(Path(pattern).name)
    assert parts, "the pattern has been checked"
    name = f"[.]{re.escape(parts[1])}[0-9]+{re.escape(parts[2])}[.]tar({re.escape(SUFFIX)})?[.][0-9a-f]+[.]partial"
    return _named(pattern, re.compile(name))


def _named(pattern: str, name: re.Pattern[str]) -> list[Path]:
    folder = Path(pattern).parent
    return sorted(path for path in folder.iterdir() if name.fullmatch(path.name)) if folder.is_dir() else []


def _groups(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    stream = iter(samples)
    while group := list(islice(stream, size)):
        yield group


def _write_tar(stream: BinaryIO, samples: Sequence[Sample]) -> None:
    from webdataset import TarWriter  # here, because it imports torch

    writer = TarWriter(stream, user="", group="", mode=0o644, mtime=0, encoder=False)
    keys: set[str] = set()
    try:
        for sample in samples:
            _check_names(sample)
            if sample.key in keys:
                raise ValueError(f"a key may stand once in a shard, {sample.key!r} comes again; give keys of their own")
            keys.add(sample.key)
            writer.write({"__key__": sample.key, **sample.members})
    except BaseException:
        with suppress(OSError, ValueError):
            writer.close()
        raise
    writer.close()


def _check_names(sample: Sample) -> None:
    """Refuse a key or an extension that a reader could not split again."""
    fault = name_fault(sample.key.encode("utf-8", "surrogatepass"))
    if fault or "." in sample.key.rpartition("/")[2] or sample.key.endswith("/") or not sample.key:
        raise ValueError(
            f"a key must be a relative path without a dot in its last part, got {sample.key!r}"
            + (f" ({fault})" if fault else "")
        )
    wrong = [extension for extension in sample.members if not EXTENSION.fullmatch(extension)]
    if wrong or not sample.members:
        raise ValueError(
            f"sample {sample.key!r} must have members whose extensions are small letters, digits, '.', '-' and '_', "
            f"got {', '.join(map(repr, wrong)) or 'none'}"
        )
