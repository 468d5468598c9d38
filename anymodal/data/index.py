"""Open shards through their indexes: every sample by its number, checked against its crc32."""

import hashlib
import logging
import os
import threading
import zlib
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anymodal.data.checks import IMAGE_KEYS, Holds
from anymodal.data.records import CodeRecords, read_about, records_path
from anymodal.data.remote import ShardCache, is_remote
from anymodal.data.scan import (
    SUFFIX,
    Place,
    ShardTable,
    Summary,
    load_columns,
    load_summary,
    load_table,
    scan_shard,
    stage_index,
)
from anymodal.data.shards import Sample, expand
from anymodal.data.tar import BLOCK, header_size

OPEN_FILES = 64
OPEN_TABLES = 64
PROBES = 8  # headers of a shard that are looked at when it is opened

Need = Literal["picture", "caption", "turns", "codes", "questions"]
logger = logging.getLogger(__name__)


class BadSample(Exception):  # noqa: N818 (what it is, as a noun)
    """Say that a sample could not be read as it was indexed: why, and where it stands."""

    def __init__(self, reason: str, shard: str, key: str, offset: int) -> None:
        """Hold the reason, the shard, the key of the sample and the offset in bytes."""
        super().__init__(f"{reason}: sample {key!r} of {shard} at byte {offset}")
        self.reason, self.shard, self.key, self.offset = reason, shard, key, offset

    def __reduce__(self) -> tuple[type, tuple[str, str, str, int]]:
        """Let the exception cross from a worker process whole."""
        return type(self), (self.reason, self.shard, self.key, self.offset)


class ShardIndex:
    """Hold the good samples of a list of shards, numbered in the order of the shards.

    >>> from anymodal.data.shards import write_shards
    >>> folder = getfixture("tmp_path")
    >>> shards = write_shards([Sample("0", {"txt": b"a red apple"})], f"{folder}/train-%06d.tar")
    >>> ShardIndex.open(f"{folder}/train-*.tar").read(0).members["txt"]
    b'a red apple'
    """

    def __init__(
        self,
        shards: Sequence[str],
        indexes: Sequence[Path],
        summaries: Sequence[Summary],
        needs: Sequence[Need] = (),
        cache: ShardCache | None = None,
    ) -> None:
        """Take shards with their index files; `open` finds or makes these."""
        self.shards, self.cache = tuple(shards), cache
        self.needs = tuple(needs)
        self._indexes = tuple(indexes)
        self._summaries = tuple(summaries)
        self._needed = [Holds[need.upper()] for need in needs]
        self.shard_sizes = tuple(
            sum(count for holds, count in summary.holds.items() if self._lacks(holds) is None) for summary in summaries
        )
        self.contents = tuple((summary.bytes, summary.crc32) for summary in summaries)
        self.extensions = tuple(summary.extensions for summary in summaries)
        self._records: tuple[Path, ...] = ()
        self._ends = list(accumulate(self.shard_sizes))
        self.bad = self._count_bad()
        self._local = threading.local()

    @classmethod
    def open(  # noqa: PLR0913 (each option has a run that needs it)
        cls,
        patterns: str | Sequence[str],
        *,
        index_folder: str | Path | None = None,
        image_keys: Sequence[str] = IMAGE_KEYS,
        max_bad_fraction: float = 0.001,
        verify_pictures: bool = True,
        needs: Sequence[Need] = (),
        progress: Callable[[Sequence[str]], Iterable[str]] = iter,
        cache: ShardCache | None = None,
    ) -> "ShardIndex":
        """Open the shards that the patterns name; a shard without an index is read through once to make it.

        The pass can be interrupted: what is indexed stays indexed. An index stands beside its shard, or in
        `index_folder` where it cannot. `needs` leaves samples out that lack one of what it names.
        `progress` is wrapped around the shards. Remote shards need a `cache`, which keeps their indexes, too.

        Raises ValueError when nothing matches, a shard is broken or has changed since it was indexed, an index cannot
        be written, or more than `max_bad_fraction` of the samples are bad.
        """
        shards = expand(patterns)
        keys = tuple(image_keys)
        folder = Path(index_folder) if index_folder is not None else None
        if any(map(is_remote, shards)) and cache is None:
            raise ValueError(f"remote shards need a folder for copies of them, got {shards[0]}; name a cache_folder")
        found = [
            cache.index_of(shard, folder=folder, image_keys=keys, verify_pictures=verify_pictures)
            if cache is not None and is_remote(shard)
            else _open_shard(shard, folder, keys, verify_pictures)
            for shard in progress(shards)
        ]
        index = cls(shards, [path for path, _ in found], [summary for _, summary in found], needs, cache)
        index.check_bad_fraction(max_bad_fraction)
        return index

    def with_codes(self, folder: str | Path, fingerprint: str) -> "ShardIndex":
        """Return an index whose samples carry the codes that stand in records, those of one image tokenizer.

        Raises ValueError when a shard has none there, or they were made of other samples.
        """
        paths = [
            records_path(Path(folder), shard, crc32, fingerprint)
            for shard, (_, crc32) in zip(self.shards, self.contents, strict=True)
        ]
        missing = [shard for shard, path in zip(self.shards, paths, strict=True) if not path.is_file()]
        if missing:
            raise ValueError(
                f"{folder} must hold codes of {fingerprint} for every shard, got none for {missing[0]} as it is now "
                f"({len(missing)} of {len(paths)} shards); make them with `anymodal tokenizers codes --form records`"
            )
        for path, summary in zip(paths, self._summaries, strict=True):
            found, count = read_about(path), sum(summary.holds.values())
            if (found.get("shard_bytes"), found.get("samples")) != (summary.bytes, count):
                raise ValueError(f"{path} must hold codes of {count} samples, got {found}; delete it and make it again")
        index = ShardIndex(self.shards, self._indexes, self._summaries, self.needs, self.cache)
        index._records = tuple(paths)
        index.extensions = ((f"codes.{fingerprint}.npy",),) * len(paths)
        return index

    def holding(self, needs: Sequence[Need]) -> "ShardIndex":
        """Return the index of the samples that hold all of this, too."""
        index = ShardIndex(
            self.shards, self._indexes, self._summaries, tuple(dict.fromkeys((*self.needs, *needs))), self.cache
        )
        index._records, index.extensions = self._records, self.extensions
        return self if len(index) == len(self) else index  # files that are open serve all who read them

    @property
    def has_records(self) -> bool:
        """Whether codes stand beside the shards."""
        return bool(self._records)

    def __len__(self) -> int:
        """Return the number of good samples."""
        return self._ends[-1] if self._ends else 0

    @property
    def fingerprint(self) -> str:
        """Name the content: it changes when a byte of a shard does, not when the shards move."""
        content = [
            (summary.bytes, summary.crc32, summary.image_keys, sorted(summary.holds.items()), self.needs)
            for summary in self._summaries
        ]
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def locate(self, number: int) -> tuple[int, int]:
        """Return the shard of a sample and its row in the table of the shard."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = bisect_right(self._ends, number)
        row = number - (self._ends[shard] - self.shard_sizes[shard])
        return shard, int(self._table(shard)[1][row]) if self.needs else row

    def key(self, number: int) -> str:
        """Return the key of a sample."""
        shard, row = self.locate(number)
        return self._table(shard)[0].keys[row]

    def read(self, number: int) -> Sample:
        """Read a sample from its shard.

        Raises BadSample when its bytes are not those that were indexed.
        """
        shard, row = self.locate(number)
        table = self._table(shard)[0]
        codes = self._codes(shard).of(row) if self._records else {}
        places = table.places(row)
        begin = places[0].offset - BLOCK
        data = self._read(shard, begin, places[-1].offset + places[-1].size - begin)
        members: dict[str, bytes] = {}
        for place in places:
            start = place.offset - begin
            member = members[place.extension] = data[start : start + place.size]
            if reason := _fault(place, data[start - BLOCK : start], member):
                raise BadSample(reason, self.shards[shard], table.keys[row], place.offset)
        return Sample(table.keys[row], members, codes)

    def check_bad_fraction(self, max_bad_fraction: float) -> None:
        """Raise ValueError when more than this share of all samples was set aside, naming the first of them.

        What lacks a need is legal: it is left out, and only refused where all samples are.
        """
        counts = sum((Counter(summary.bad) for summary in self._summaries), Counter[str]())
        bad, good = counts.total(), sum(sum(summary.holds.values()) for summary in self._summaries)
        if good and not len(self):
            raise ValueError(f"at least one sample must hold {' and '.join(self.needs)}, none of {good} does")
        if bad <= max_bad_fraction * (bad + good):
            return
        reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(counts.items()))
        first = next(
            (
                f"; the first is {member} of {shard} at byte {offset}: {message}"
                for shard, summary in zip(self.shards, self._summaries, strict=True)
                for member, offset, message in sorted(summary.examples.values(), key=lambda example: example[1])
            ),
            "",
        )
        raise ValueError(
            f"at most {max_bad_fraction:.2%} of the samples may be bad, got {bad} of {bad + good} ({reasons})"
            f"{first}; repair the shards or raise max_bad_fraction"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind when the index goes to another process."""
        return {name: value for name, value in self.__dict__.items() if name != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin without open files."""
        self.__dict__.update(state, _local=threading.local())

    def _lacks(self, holds: int) -> str | None:
        """Return what a sample that holds this lacks, None where it has all that is needed."""
        return next((need for need, bit in zip(self.needs, self._needed, strict=True) if not holds & bit), None)

    def _count_bad(self) -> dict[str, int]:
        bad: Counter[str] = Counter()
        for summary in self._summaries:
            bad.update(summary.bad)
            for holds, count in summary.holds.items():
                if lacking := self._lacks(holds):
                    bad[f"no {lacking}"] += count
        return dict(sorted(bad.items()))

    def _table(self, shard: int) -> tuple[ShardTable, NDArray[np.int64]]:
        """Return the table of a shard and the rows of it that hold what is needed."""
        kept: tuple[ShardTable, NDArray[np.int64]] = self._kept("tables", shard, self._load_table, OPEN_TABLES)
        return kept

    def _load_table(self, shard: int) -> tuple[ShardTable, NDArray[np.int64]]:
        table = load_table(self._indexes[shard])
        if len(table) != sum(self._summaries[shard].holds.values()) or table.summary != self._summaries[shard]:
            raise ValueError(
                f"an index must stay as it is while it is in use: {self._indexes[shard]} has changed; start again"
            )
        wanted = np.array([self._lacks(holds) is None for holds in range(1 + max(Holds) * 2)])
        return table, np.flatnonzero(wanted[table.holds])

    def _codes(self, shard: int) -> CodeRecords:
        records: CodeRecords = self._kept("codes", shard, self._load_codes, OPEN_TABLES)
        return records

    def _load_codes(self, shard: int) -> CodeRecords:
        return CodeRecords(self._records[shard])

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        """Read bytes of a shard, fewer where it ends."""
        limit = OPEN_FILES if self.cache is None else min(OPEN_FILES, self.cache.limit)
        return os.pread(self._kept("files", shard, self._open_file, limit).descriptor, size, offset)

    def _open_file(self, shard: int) -> "_Handle":
        if self.cache is not None and is_remote(self.shards[shard]):
            return _Handle(self.cache.open(self.shards[shard], *self.contents[shard]))
        return _Handle(os.open(self.shards[shard], os.O_RDONLY))

    def _kept(self, what: str, shard: int, make: Callable[[int], Any], limit: int) -> Any:
        """Return a thing of a shard from the cache of this process and thread, made where it is not there."""
        if getattr(self._local, "process", None) != os.getpid():  # first use, or on the far side of a fork
            self._local.process = os.getpid()
            self._local.caches = {"files": OrderedDict(), "tables": OrderedDict(), "codes": OrderedDict()}
        cache = self._local.caches[what]
        if shard not in cache:
            cache[shard] = make(shard)
        cache.move_to_end(shard)
        while len(cache) > limit:
            cache.popitem(last=False)
        return cache[shard]


class _Handle:
    """Hold a file open for reading as long as someone refers to it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def _open_shard(
    shard: str, folder: Path | None, image_keys: tuple[str, ...], verify_pictures: bool
) -> tuple[Path, Summary]:
    """Find or make the index of a shard, and see that it fits the shard."""
    path = Path(shard)
    beside = path.with_name(path.name + SUFFIX)
    places = [beside] if folder is None else [_place_in(folder, path), beside]
    old = None
    for place in places:
        if place.exists():
            old = load_summary(place)
            _check_unchanged(path, place, old)
            if old.serves(image_keys=image_keys, verify_pictures=verify_pictures):
                return place, old
    logger.info("indexing %s", shard)
    table = scan_shard(path, image_keys=image_keys, verify_pictures=verify_pictures)
    if old is not None and (table.summary.bytes, table.summary.crc32) != (old.bytes, old.crc32):
        raise _changed(path, place, "its bytes differ")
    try:
        places[0].parent.mkdir(parents=True, exist_ok=True)
        stage_index(table, places[0]).commit()
    except OSError as error:
        raise ValueError(
            f"the index of {shard} must be written to {places[0]}, which is not possible ({error.strerror}); "
            "give an index_folder that can be written"
        ) from error
    return places[0], table.summary


def _place_in(folder: Path, shard: Path) -> Path:
    """Name the index of a shard in a folder that serves shards of many folders."""
    whole = hashlib.sha256(str(shard.absolute()).encode()).hexdigest()[:8]
    return folder / f"{shard.name}.{whole}{SUFFIX}"


def _check_unchanged(shard: Path, index: Path, summary: Summary) -> None:
    """Compare a shard with its index at little cost: its size and some headers; `read` checks every byte it uses."""
    size = shard.stat().st_size
    if size != summary.bytes:
        raise _changed(shard, index, f"it had {summary.bytes} bytes and has {size}")
    offsets, sizes = load_columns(index, ("offsets", "sizes"))
    with shard.open("rb") as stream:
        for member in np.linspace(0, len(offsets) - 1, min(PROBES, len(offsets)), dtype=int):
            offset = int(offsets[member]) - BLOCK
            stream.seek(offset)
            try:
                found = header_size(stream.read(BLOCK))
            except ValueError as error:
                raise _changed(shard, index, f"the header at byte {offset} has {error}") from error
            if found != sizes[member]:
                raise _changed(shard, index, f"the member at byte {offset} has another size")


def _changed(shard: Path, index: Path, what: str) -> ValueError:
    return ValueError(
        f"a shard must stay as it was indexed: {shard} has changed, {what}; "
        f"fetch it again, or delete {index} if the change is meant"
    )


def _fault(place: Place, header: bytes, member: bytes) -> str | None:
    """Say what is wrong with a member as it was read from its shard, None when nothing is."""
    if len(header) < BLOCK or len(member) < place.size:
        return "shard is cut"
    try:
        size = header_size(header)
    except ValueError:
        return "header differs"
    if size != place.size:
        return "header differs"
    return None if zlib.crc32(member) == place.crc32 else "crc32 differs"
