"""Room in the cache for what runs and for what comes."""

from collections.abc import Sequence

from anymodal.decoding.config import EngineConfig
from anymodal.decoding.native_blocks import NativeBlocks
from anymodal.decoding.prefill import piece_of
from anymodal.decoding.request import Request
from anymodal.model.cache import KVCache
from anymodal.model.unified import AnyModal

ROUND = 64  # capacities are multiples, so that later requests fit without moving the cache


def with_room(
    cache: KVCache | None,
    requests: Sequence[Request],
    *,
    taken: int,
    model: AnyModal,
    config: EngineConfig,
    bucket: int,
) -> KVCache:
    """Return a cache that holds these requests beside `taken` rows: the one there is, one grown from it, or the first.

    Raises:
        MemoryError: there is no room for it.
    """
    shape = model.config.transformer
    rows, context = taken + sum(each.num_rows for each in requests), shape.max_seq_len
    spare = 2 + (config.window if config.speculation != "none" else 0)
    used = [max(len(s.ids) for s in (each.prompt, *each.beside())) + each.budget(context) for each in requests]
    tokens = -(-(max(used) + spare) // ROUND) * ROUND
    if config.batch_invariant:
        rows, piece = config.max_rows, piece_of(config)
        tokens = -(-(context + spare) // piece) * piece
    if cache is not None:
        rows, tokens = max(rows, cache.num_rows), max(tokens, cache.capacity)
        same = (rows, tokens) == (cache.num_rows, cache.capacity)
        return cache if same else cache.grown(shape, num_rows=rows, capacity=tokens)
    stack, dtype = model.transformer.stack, model.embedding.weight.dtype
    return KVCache(
        shape, num_rows=rows, capacity=tokens, device=model.device,
        dtype=stack.cache_dtype if isinstance(stack, NativeBlocks) else dtype,
        bucket=tokens if config.batch_invariant else bucket,
    )  # fmt: skip
