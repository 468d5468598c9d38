"""Open what a configuration names: shards, and the codes beside them."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from anymodal.data.config import DataConfig
from anymodal.data.index import Need, ShardIndex
from anymodal.data.remote import ShardCache


def open_shards(
    data: DataConfig,
    patterns: str,
    *,
    fingerprint: str | None = None,
    needs: Sequence[Need] = (),
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
    orders: int = 1,
) -> ShardIndex:
    """Open the shards of `data.train` or `data.held_out`; with a fingerprint, samples carry the codes of `data.codes`.

    Raises ValueError as `ShardIndex.open` and `ShardIndex.with_codes` do.
    """
    index = ShardIndex.open(
        patterns,
        index_folder=data.index_folder,
        max_bad_fraction=data.max_bad_fraction,
        needs=needs,
        progress=progress,
        cache=copies_of(data, patterns, orders),
    )
    return index.with_codes(data.codes, fingerprint) if data.codes and fingerprint is not None else index


def copies_of(data: DataConfig, patterns: str, orders: int = 1) -> ShardCache | None:
    """Return where copies of remote shards are kept, under `data.cache_folder`; None where that is not named.

    Kept are `data.cache_shards` of them, and as many again for the next block, for each of the `orders` in which the
    shards are read at once. Who names the same shards shares the copies, who reads others evicts none of them.
    """
    if not data.cache_folder:
        return None
    name = hashlib.sha256(patterns.encode()).hexdigest()[:8]
    return ShardCache(Path(data.cache_folder) / name, 2 * data.cache_shards * orders)
