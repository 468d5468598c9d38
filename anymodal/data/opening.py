"""Open what a configuration names: shards, and the codes beside them."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from anymodal.data.config import DataConfig
from anymodal.data.index import Need, ShardIndex
from anymodal.data.remote import ShardCache
from anymodal.data.shards import expand


@dataclass(frozen=True)
class Part:
    """Hold what one pattern names of an index: its first sample, the sizes of its shards, its share of every step."""

    start: int
    shard_sizes: tuple[int, ...]
    ratio: float = 1.0


def parts_of(data: DataConfig, index: ShardIndex) -> tuple[Part, ...]:
    """Return what every pattern of `data.train` names of its index; all as one part where there are no ratios."""
    if not data.ratios:
        return (Part(0, index.shard_sizes),)
    counts = [len(expand(pattern)) for pattern in data.train.split("::") if pattern]
    ends = list(accumulate(counts))
    return tuple(
        Part(sum(index.shard_sizes[: end - count]), index.shard_sizes[end - count : end], ratio)
        for count, end, ratio in zip(counts, ends, data.ratios, strict=True)
    )


def parts_in(index: ShardIndex, parts: Sequence[Part]) -> tuple[Part, ...]:
    """Return what an index of fewer samples holds of the parts of another one of the same shards."""
    ends = list(accumulate(len(part.shard_sizes) for part in parts))
    assert ends[-1] == len(index.shards), "the parts hold every shard"
    return tuple(
        Part(
            sum(index.shard_sizes[: end - len(part.shard_sizes)]),
            index.shard_sizes[end - len(part.shard_sizes) : end],
            part.ratio,
        )
        for part, end in zip(parts, ends, strict=True)
    )


def open_shards(
    data: DataConfig,
    patterns: str,
    *,
    fingerprint: str | None = None,
    needs: Sequence[Need] = (),
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
    orders: int = 1,
    share: tuple[int, int] = (0, 1),
) -> ShardIndex:
    """Open the shards of `data.train` or `data.held_out`; with a fingerprint, samples carry the codes of `data.codes`.

    Copies of remote shards are kept under `data.cache_folder`: `data.cache_shards` of them, and as many again for the
    next block, for each of the `orders` in which the shards are read at once. Who names the same shards shares the
    copies, who reads others evicts none of them. `share` is a process's number and the number of processes that part
    the shards among them.

    Raises ValueError as `ShardIndex.open` and `ShardIndex.with_codes` do.
    """
    cache = None
    if data.cache_folder:
        name = hashlib.sha256(patterns.encode()).hexdigest()[:8]
        cache = ShardCache(Path(data.cache_folder) / name, 2 * data.cache_shards * orders)
    index = ShardIndex.open(
        expand(patterns)[share[0] :: share[1]],
        index_folder=data.index_folder,
        max_bad_fraction=data.max_bad_fraction,
        needs=needs,
        progress=progress,
        cache=cache,
    )
    return index.with_codes(data.codes, fingerprint) if data.codes and fingerprint is not None else index
