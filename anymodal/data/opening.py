"""Open what a configuration names: shards, and the codes beside them."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from anymodal.data.config import DataConfig
from anymodal.data.index import Need, ShardIndex
from anymodal.data.remote import ShardCache
from anymodal.data.shards import expand


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
