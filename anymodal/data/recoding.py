"""Codes of whole shards, one shard after another: many processes share the work, and a killed one goes on."""

import glob
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from anymodal.data.coding import Coding, coded_samples, codes_of_samples
from anymodal.data.files import StagedFile
from anymodal.data.index import ShardIndex
from anymodal.data.records import SUFFIX as RECORDS
from anymodal.data.records import CodeRecords, read_about, records_path, stage_records
from anymodal.data.scan import SUFFIX as INDEX
from anymodal.data.scan import load_summary
from anymodal.data.shards import Sample, stage_shard

NOTE = ".codes.json"
Form = Literal["members", "records"]


@dataclass(frozen=True)
class Recoded:
    """Count what became of the shards: samples and shards written, shards that stood there already."""

    samples: int
    written: int
    kept: int


@dataclass(frozen=True, kw_only=True)
class Recoding:
    """Where the codes of shards go, and in which form.

    `form` "members" writes every shard again with the codes among its members, "records" writes a file of codes for
    every shard, which is then read beside it. `keep_pictures` leaves the pictures in shards that are written again.
    `overwrite` replaces what stands there and was made of something else.
    """

    coding: Coding
    out: Path
    form: Form = "members"
    keep_pictures: bool = True
    overwrite: bool = False

    def target(self, index: ShardIndex, shard: int, number: int) -> Path:
        """Name the file of a shard of an index; `number` is its place among all shards."""
        if self.form == "members":
            return self.out / f"{number:06d}.tar"
        crc32 = index.contents[shard][1]
        return records_path(self.out, index.shards[shard], crc32, self.coding.tokenizer.fingerprint)

    def about(self, index: ShardIndex, shard: int) -> dict[str, Any]:
        """Say what the codes of a shard are made of; nothing else has a part in their bytes."""
        size, crc32 = index.contents[shard]
        made_of = {
            "tokenizer": self.coding.tokenizer.fingerprint,
            "size": self.coding.size,
            "views": self.coding.views,
            "shard_bytes": size,
            "shard_crc32": crc32,
            "samples": index.shard_sizes[shard],
        }
        return made_of if self.form == "records" else made_of | {"keep_pictures": self.keep_pictures}


def recode(
    index: ShardIndex,
    numbers: Sequence[int],
    recoding: Recoding,
    *,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Recoded:
    """Write the codes of every shard of an index; `numbers` are the places of these shards among all.

    A shard takes its name when it is whole. What stands there whole, made of the same, is kept: a killed run goes on
    where it was. A shard's bytes do not depend on the other shards, so that processes may share them in any way.
    `progress` is wrapped around the samples.

    Raises ValueError when a file stands there that was made of something else, or the disk is full.
    """
    recoding.out.mkdir(parents=True, exist_ok=True)
    samples = kept = 0
    starts = [sum(index.shard_sizes[:shard]) for shard in range(len(index.shards))]
    done = iter(progress(range(len(index))))
    for shard in range(len(index.shards)):
        target, about = recoding.target(index, shard, numbers[shard]), recoding.about(index, shard)
        places = range(starts[shard], starts[shard] + index.shard_sizes[shard])
        samples += len(places)
        if _stands(target, about, recoding.overwrite):
            kept += 1
            deque(islice(done, len(places)), maxlen=0)
            continue
        for orphan in target.parent.glob(f".{glob.escape(target.name)}*.partial"):  # a killed process left it
            orphan.unlink()
        if recoding.form == "records":
            made = codes_of_samples(index, places, recoding.coding)
            stage_records((codes for (_, codes), _ in zip(made, done, strict=False)), about, target).commit()
        else:
            _write_shard(_coded(index, places, recoding, done), target, about)
    deque(done, maxlen=0)
    return Recoded(samples=samples, written=len(index.shards) - kept, kept=kept)


def check_folder(folder: Path, count: int, *, overwrite: bool) -> None:
    """Check that a folder holds no shards beyond the `count` that are written there, or remove them to `overwrite`.

    Raises ValueError when it does: who reads the folder would read them, too.
    """
    wanted = {f"{number:06d}.tar" for number in range(count)}
    others = sorted(path for path in folder.glob("*.tar") if path.name not in wanted)
    if others and not overwrite:
        raise ValueError(
            f"{folder} must hold no shards but the {count} that are written there, got {others[0].name} "
            f"({len(others)} in all); choose another folder or set overwrite"
        )
    for path in others:
        for name in (path.name + INDEX, path.name + NOTE, path.name):
            path.with_name(name).unlink(missing_ok=True)


def _coded(index: ShardIndex, places: Sequence[int], recoding: Recoding, done: Iterator[int]) -> list[Sample]:
    coding = recoding.coding
    samples = coded_samples(
        index, places, tokenizer=coding.tokenizer, size=coding.size, views=coding.views, batch_size=coding.batch_size,
        keep_pictures=recoding.keep_pictures,
    )  # fmt: skip
    return [sample for sample, _ in zip(samples, done, strict=False)]


def _write_shard(samples: Sequence[Sample], target: Path, about: Mapping[str, Any]) -> None:
    shard, table, summary = stage_shard(samples, target, pictures_verified=True)
    note = StagedFile(target.with_name(target.name + NOTE))
    try:
        with note.open() as stream:
            said = {"about": about, "bytes": summary.bytes, "crc32": summary.crc32}
            stream.write(json.dumps(said, sort_keys=True, indent=1).encode())
        for staged in (note, shard, table):  # the note first: with it, a shard without an index is known for ours
            staged.commit()
    finally:
        for staged in (note, shard, table):
            staged.discard()


def _stands(target: Path, about: Mapping[str, Any], overwrite: bool) -> bool:
    """Tell whether a target stands there whole and made of the same.

    Raises ValueError when another file stands in its place, unless it may be overwritten.
    """
    records = target.name.endswith(RECORDS)
    note = target if records else target.with_name(target.name + NOTE)
    if not note.exists():
        if target.exists() and not overwrite:
            raise ValueError(f"{target} must not exist, or be of the same run; choose another folder or set overwrite")
        return False
    try:
        said = {"about": read_about(target)} if records else json.loads(note.read_bytes())
        found = said["about"]
    except (ValueError, KeyError, TypeError):
        found = None  # cut: it is made again
    if found is not None and found != about:
        if overwrite:
            return False
        what = next(name for name in about if found.get(name) != about[name])
        raise ValueError(
            f"{target} must have been made of the same: its {what} is {found.get(what)}, now it is {about[what]}; "
            "choose another folder or set overwrite"
        )
    return found is not None and (_is_whole(target) if records else _is_indexed(target, said))


def _is_whole(records: Path) -> bool:
    try:
        CodeRecords(records)
    except ValueError:
        return False
    return True


def _is_indexed(shard: Path, note: Mapping[str, Any]) -> bool:
    index = shard.with_name(shard.name + INDEX)
    if not (shard.is_file() and index.is_file() and shard.stat().st_size == note["bytes"]):
        return False
    try:
        summary = load_summary(index)
    except ValueError:
        return False
    return (summary.bytes, summary.crc32) == (note["bytes"], note["crc32"])
