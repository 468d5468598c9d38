"""The cache against forward passes without one."""

from typing import Any

import pytest
import torch

from anymodal.model.cache import KVCache
from anymodal.model.config import TransformerConfig
from anymodal.model.transformer import Transformer

CONFIG = TransformerConfig(dim=32, depth=2, num_heads=4, num_kv_heads=2, head_dim=8, hidden_dim=48, qk_norm="layer")


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    transformer = Transformer(CONFIG).double().eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return transformer


def cache_of(num_rows: int, capacity: int, **options: Any) -> KVCache:
    return KVCache(CONFIG, num_rows=num_rows, capacity=capacity, dtype=torch.float64, **options)


@pytest.mark.parametrize("bucket", [0, 4])
@pytest.mark.parametrize("chunks", [(9,), (1, 8), (4, 1, 1, 3), (1,) * 9])
def test_cache_equals_no_cache(model: Transformer, chunks: tuple[int, ...], bucket: int) -> None:
    x = torch.randn(3, 9, 32, dtype=torch.float64)
    cache = cache_of(3, 9, bucket=bucket)
    parts = []
    for chunk in x.split(list(chunks), dim=1):
        step = cache.reserve(chunk.shape[1])
        assert not bucket or step.keys.shape[3] in (4, 8, 9)
        parts.append(model(chunk, step.places, step))
        cache.keep(chunk.shape[1])
    torch.testing.assert_close(torch.cat(parts, 1), model(x, torch.arange(9).expand(3, 9)), atol=1e-12, rtol=1e-12)
    assert cache.lengths.tolist() == [9, 9, 9]
    with pytest.raises(ValueError, match="holds 9 tokens a row, 10 are needed"):
        cache.reserve(1)


def test_rows_have_lengths_of_their_own_and_move(model: Transformer) -> None:
    x = torch.randn(3, 8, 32, dtype=torch.float64)
    whole = [model(x[row : row + 1], torch.arange(8)[None])[0] for row in range(3)]
    prompts = x[:, :5].clone()
    prompts[1, 2:], prompts[2, 4:] = 99.0, 99.0  # what pads a row leaves no trace
    cache = cache_of(4, 8)
    step = cache.reserve(5, slice(3))
    model(prompts, step.places, step)
    cache.keep([5, 2, 4], slice(3))

    def append(rows: list[int], window: slice) -> None:
        """Append the next token of these rows, which stand in this window."""
        filled = [cache.filled(place) for place in range(window.start, window.stop)]
        step = cache.reserve(1, window)
        out = model(torch.stack([x[row, at][None] for row, at in zip(rows, filled, strict=True)]), step.places, step)
        cache.keep(1, window)
        for row, at, hidden in zip(rows, filled, out, strict=True):
            torch.testing.assert_close(hidden[0], whole[row][at], atol=1e-12, rtol=1e-12)

    append([0, 1, 2], slice(0, 3))
    append([1, 2], slice(1, 3))
    cache.copy(1, 3)
    append([1], slice(3, 4))
    saved = cache.save(2)
    cache.clear(2)
    assert cache.filled(2) == 0
    assert int(cache.lengths[2]) == 0
    cache.load(0, saved, 3, begin=-1)
    append([2], slice(0, 1))
    cache = cache.grown(CONFIG, num_rows=6, capacity=12)
    assert (cache.num_rows, cache.capacity) == (6, 12)
    append([2], slice(0, 1))
    append([1], slice(1, 2))


def test_no_memory_is_named() -> None:
    with pytest.raises(MemoryError, match=r"a cache of 1000000 rows of 1000000000 tokens takes .* GiB.*max_rows"):
        KVCache(CONFIG, num_rows=10**6, capacity=10**9)
