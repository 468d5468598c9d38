"""A light transformer in one call of the kernel against the same one in single operators."""

import copy
import itertools
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from anymodal.decoding.native_blocks import NATIVE_QUERIES, NATIVE_ROWS, NativeBlocks
from anymodal.decoding.weights import Kind, lighten
from anymodal.model.cache import KVCache
from anymodal.model.config import TransformerConfig
from anymodal.model.transformer import Transformer

pytestmark = pytest.mark.usefixtures("compiler")
SMALL = TransformerConfig(
    dim=36, depth=2, num_heads=4, num_kv_heads=2, head_dim=10, hidden_dim=53, max_seq_len=32, norm_eps=1e-5
)
FORMS: list[dict[str, Any]] = [
    {},
    {"norm_position": "swin", "qk_norm": "layer", "num_kv_heads": 4},
    {"qk_norm": "rms", "num_kv_heads": 1},
    {"attention_bias": True, "output_bias": False},
    {"attention_bias": True, "mlp_bias": True, "norm_position": "swin", "qk_norm": "rms", "head_dim": 32},
]


def light(toy: Any, kind: Kind = "float32", **form: Any) -> Transformer:
    """Make a light transformer with random weights, norms and biases among them."""
    model = toy.parts(transformer=replace(SMALL, **form)).model.eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    lighten(model, kind, native=True)
    transformer: Transformer = model.transformer
    assert isinstance(transformer.stack, NativeBlocks)
    return transformer


def read(transformer: Transformer, x: Tensor, counts: tuple[int, ...], cache: KVCache, rows: slice) -> Tensor:
    """Read tokens so many at a time."""
    parts = list[Tensor]()
    for part in x.split(counts, dim=1):
        step = cache.reserve(part.shape[1], rows)
        parts.append(transformer(part, step.places, step))
        cache.keep(part.shape[1], rows)
    return torch.cat(parts, dim=1)


@torch.inference_mode()
@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_one_call_is_what_single_operators_are(toy: Any, form: dict[str, Any], kind: Kind) -> None:
    transformer = light(toy, kind, **form)
    x, counts = torch.randn(3, 60, 36), (20, 1, 5, 1, 8, 3, 9, 1, 12)  # more places than the context has, at the end
    whole = list[Tensor]()
    dtype, bucket = cast(NativeBlocks, transformer.stack).cache_dtype, 0 if kind == "int8" else 32
    for stack in (transformer.stack, None):
        transformer.stack = stack
        cache = KVCache(transformer.config, num_rows=5, capacity=70, bucket=bucket, dtype=dtype)
        cache.keep([0, 2, 0, 7, 0])  # rows of different lengths
        whole += [read(transformer, x, counts, cache, slice(1, 4)), cache.keys, cache.values]
    for one, single in zip(whole[:3], whole[3:], strict=True):
        bound = {"float32": 2e-5, "bfloat16": 2**-7, "int8": 2**-7}[kind]  # numbers may be rounded to either side
        torch.testing.assert_close(one, single, atol=bound, rtol=bound)
        assert bool(one.abs().sum() > 0)
        if one.dtype is torch.bfloat16:
            assert float((one == single).double().mean()) > 0.95  # both round to the nearest


@torch.inference_mode()
@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_row_depends_neither_on_others_nor_on_threads(toy: Any, kind: Kind) -> None:
    big = {"dim": 256, "hidden_dim": 512, "head_dim": 64, "depth": 1, "qk_norm": "layer"}
    transformer = light(toy, kind, **big)
    x, before = torch.randn(9, 12, 256), torch.get_num_threads()
    alone = [read(transformer, row[None], (1,) * 12, cache_of(transformer, 1), slice(0, 1)) for row in x]
    try:
        for threads, rows in itertools.product((1, 2), (1, 2, 3, 4, 7, 9)):
            torch.set_num_threads(threads)
            cache = cache_of(transformer, rows)
            together = read(transformer, x[:rows], (1, 7, 1, 3), cache, slice(0, rows))
            assert torch.equal(together, torch.cat(alone[:rows]))
    finally:
        torch.set_num_threads(before)


def cache_of(transformer: Transformer, rows: int) -> KVCache:
    dtype = cast(NativeBlocks, transformer.stack).cache_dtype
    return KVCache(transformer.config, num_rows=rows, capacity=24, dtype=dtype)


def test_batch_invariant_ids_are_equal(make_setup: Any) -> None:
    setup = copy.copy(make_setup("decoupled", "rows"))
    setup.model = copy.deepcopy(setup.model).float()
    lighten(setup.model, "bfloat16", native=True)
    how, requests = {"batch_invariant": True, "max_rows": 9}, setup.requests()[:9:2]
    alone = [setup.generate([request], **how)[0] for request in requests]
    assert setup.generate(requests, **how) == alone
    assert setup.generate(requests[::-1], **how) == alone[::-1]


@torch.inference_mode()
def test_what_torch_is_to_do_is_left_to_it(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = light(toy)
    stack = transformer.stack
    assert stack is not None
    for rows, queries in ((1, NATIVE_QUERIES + 1), (NATIVE_ROWS + 1, 1), (NATIVE_ROWS // 8 + 1, 8)):
        assert stack(torch.randn(rows, queries, 36), cache_of(transformer, rows).reserve(queries)) is None
    step, x = cache_of(transformer, 2).reserve(1), torch.randn(2, 1, 36)
    assert stack(x, step) is not None
    assert stack(x, replace(step, keys=step.keys.double(), values=step.values.double())) is None
    assert stack(x.double(), step) is None
    with torch.inference_mode(False), torch.enable_grad():
        assert stack(torch.randn(2, 1, 36, requires_grad=True), step) is None
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert stack(x, step) is None


@torch.inference_mode()
def test_place_that_is_not_shown_is_refused_and_nothing_written(toy: Any) -> None:
    transformer = light(toy)
    cache = cache_of(transformer, 2)
    step, x = cache.reserve(1), torch.randn(2, 1, 36)
    for place in (-1, step.keys.shape[3]):
        wrong = replace(step, places=torch.tensor([[0], [place]]))
        with pytest.raises(ValueError, match=r"places must lie in \[0, 1\)"):
            transformer(x, wrong.places, wrong)
    assert not bool(cache.keys.any())
