"""Open what a configuration names: shards, and the codes beside them."""

from collections.abc import Callable, Iterable, Sequence

from anymodal.data.config import DataConfig
from anymodal.data.index import Need, ShardIndex


def open_shards(
    data: DataConfig,
    patterns: str,
    *,
    fingerprint: str | None = None,
    needs: Sequence[Need] = (),
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
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
    )
    return index.with_codes(data.codes, fingerprint) if data.codes and fingerprint is not None else index
