import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anymodal.decoding import native
from anymodal.decoding.native import (
    KEPT,
    build_kernel,
    load_kernel,
    native_attention,
    native_gelu,
    native_gumbel,
    native_linear,
    native_rms_norm,
)
from anymodal.decoding.noise import gumbel

SHAPES = [  # rows, queries, heads, kv_heads, head_dim, keys
    (1, 1, 1, 1, 4, 1),
    (2, 1, 8, 8, 64, 100),
    (3, 5, 6, 2, 80, 200),
    (2, 7, 4, 1, 10, 70),
    (1, 33, 4, 4, 16, 129),
    (2, 3, 4, 4, 128, 64),
]
WEIGHTS_OF_TWO_THREADS = 2**17  # with fewer, the kernel wakes no second one
DTYPES = (torch.float32, torch.bfloat16, torch.int8)
LOST = {torch.float32: 1e-6, torch.bfloat16: 8e-6, torch.int8: 1e-6}
"""Of a sum of absolute products; tiles keep 16 bits of what bfloat16 weights are multiplied with."""


def weights(out: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    if dtype == torch.int8:
        return torch.randint(-127, 128, (out, width), dtype=dtype), torch.rand(out)
    return torch.randn(out, width).to(dtype), None


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("out", "width"), [(8, 32), (16, 64), (9, 7), (1, 1), (23, 77), (40, 131)])
def test_product_is_that_of_float64(out: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, scale = weights(out, width, dtype)
    for rows in range(34):
        x = torch.randn(rows, width)
        y = native_linear(x, weight, scale)
        wide = weight.double() if scale is None else weight.double() * scale.double()[:, None]
        assert (y.dtype, y.shape) == (torch.float32, (rows, out))
        bound = LOST[dtype] * x.double().abs() @ wide.abs().T
        if dtype == torch.int8:
            bound += rounding(x, wide)
        assert bool(((y - x.double() @ wide.T).abs() <= bound).all())


def rounding(x: Tensor, wide: Tensor) -> Tensor:
    """Bound what int8 products lose when a row is rounded: half a step of its largest number, for every weight."""
    return 0.51 / 32639 * x.double().abs().amax(-1, keepdim=True) * wide.abs().sum(1)


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("width", [4032, 4033, 9000])
def test_int8_sums_of_the_largest_numbers_do_not_overflow(width: int) -> None:
    weight = torch.full((9, width), -128, dtype=torch.int8)
    for rows in (1, 2, 3, 4):
        y = native_linear(torch.full((rows, width), -3.0), weight, torch.full((9,), 0.5))
        torch.testing.assert_close(y, torch.full((rows, 9), width * 192.0), rtol=1e-6, atol=0)


@pytest.mark.usefixtures("unit")
def test_int8_rows_of_odd_sizes_do_not_meet() -> None:
    weight, scale = weights(23, 77, torch.int8)
    x = torch.randn(7, 77)
    x[1] = 0
    x[2] *= 1e33
    x[3] *= 1e-30
    x[4, 5], x[5, 76], x[6, 76] = torch.nan, torch.inf, torch.nan
    y = native_linear(x, weight, scale)
    assert scale is not None
    wide = weight.double() * scale.double()[:, None]
    bound = 1e-6 * x.double().abs() @ wide.abs().T + rounding(x, wide)
    assert bool(((y - x.double() @ wide.T).abs() <= bound)[:4].all())
    assert bool(y[4:].isnan().all())
    denormal = native_linear(torch.full((1, 77), 1e-42), weight, scale)
    assert float(denormal.abs().max()) <= 1e-34


@pytest.mark.usefixtures("compiler")
def test_axes_before_the_last_are_rows() -> None:
    weight, _ = weights(5, 12, torch.bfloat16)
    x = torch.randn(12, 3, 2).permute(2, 1, 0)
    bound = LOST[torch.bfloat16] * x.abs() @ weight.float().abs().T
    assert bool(((native_linear(x, weight) - x @ weight.float().T).abs() <= bound + 1e-6).all())
    assert native_linear(x[0, 0], weight).shape == (5,)


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_depends_neither_on_others_nor_on_threads(dtype: torch.dtype) -> None:
    out, width = 517, 301
    assert out * width >= WEIGHTS_OF_TWO_THREADS
    weight, scale = weights(out, width, dtype)
    x = torch.randn(33, width)
    alone = torch.cat([native_linear(row[None], weight, scale) for row in x])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for rows in range(1, 34):
                assert torch.equal(native_linear(x[-rows:], weight, scale), alone[-rows:])
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("compiler")
def test_operator_can_be_traced() -> None:
    weight, scale = weights(5, 12, torch.int8)
    x = torch.randn(2, 12)
    torch.library.opcheck(native._traced, (x, weight, scale), test_utils=("test_schema", "test_faketensor"))

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(x: Tensor) -> Tensor:
        return torch.ops.anymodal.native_linear(x, weight, scale) + 1

    assert torch.equal(compiled(x), native_linear(x, weight, scale) + 1)


@pytest.mark.usefixtures("compiler")
def test_what_the_kernel_cannot_read_is_refused() -> None:
    weight, x = torch.randn(5, 12), torch.randn(2, 12)
    wrong = [
        (x.double(), weight, None),
        (x[:, 1:], weight, None),
        (x, weight.half(), None),
        (x, torch.randn(12, 5).T, None),
        (x, weight, torch.ones(4)),
        (x, weight, torch.ones(5).double()),
        (x.clone().requires_grad_(), weight, None),
    ]
    for each in wrong:
        with pytest.raises(ValueError, match="native kernel multiplies"):
            load_kernel().linear(*each)


def attention(
    rows: int, count: int, heads: int, kv_heads: int, width: int, keys: int, *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make queries that lie between others, and a part of a larger cache, which is no number where nobody looks."""
    torch.manual_seed(0)
    q = 2 * torch.randn(rows, count, heads + 3, width)[:, :, 1:-2]
    places = torch.randint(0, keys, (rows, count))
    cache = torch.randn(2, rows + 1, kv_heads, keys + 9, width)[:, 1:, :, :keys]
    cache.mT[(torch.arange(keys) > places.amax(1, keepdim=True))[None, :, None, None].expand_as(cache.mT)] = torch.nan
    return q, *cache.to(dtype), places


def true_attention(q: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> Tensor:
    mask = (torch.arange(keys.shape[2]) <= places[:, :, None])[:, None]
    k, v = (cache.double().nan_to_num() for cache in (keys, values))
    mixed = F.scaled_dot_product_attention(q.double().transpose(1, 2), k, v, attn_mask=mask, enable_gqa=True)
    return mixed.transpose(1, 2)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("dtype", KEPT)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_is_that_of_float64_and_reads_what_is_seen_alone(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, keys, values, places = attention(*shape, dtype=dtype)
    y = native_attention(q, keys, values, places)
    assert (y.dtype, y.shape, y.is_contiguous()) == (torch.float32, q.shape, True)
    torch.testing.assert_close(y.double(), true_attention(q, keys, values, places), atol=3e-6, rtol=0)
    half = native_attention(q, keys, values, places, 0.5)
    torch.testing.assert_close(half, native_attention(q * (0.5 * shape[4] ** 0.5), keys, values, places))
    far = native_attention(100 * q, keys, values, places)  # weights that underflow
    torch.testing.assert_close(far.double(), true_attention(100 * q, keys, values, places), atol=2e-3, rtol=0)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("dtype", KEPT)
@pytest.mark.parametrize("shape", [(5, 9, 6, 2, 80, 200), (5, 9, 4, 4, 64, 150), (19, 9, 8, 4, 10, 100)], ids=str)
def test_attention_of_a_query_depends_on_nothing_else(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, keys, values, places = attention(*shape, dtype=dtype)
    assert 2 * keys.numel() >= WEIGHTS_OF_TWO_THREADS
    alone = torch.empty(q.shape)
    for row in range(len(q)):
        for n in range(q.shape[1]):
            end, mine = int(places[row, n]) + 1, slice(row, row + 1)
            shown = keys[mine, :, :end], values[mine, :, :end]
            alone[mine, n : n + 1] = native_attention(q[mine, n : n + 1], *shown, places[mine, n : n + 1].contiguous())
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for count in range(1, q.shape[1] + 1):
                some = native_attention(q[:, -count:], keys, values, places[:, -count:].contiguous())
                assert torch.equal(some, alone[:, -count:])
            for first in range(len(q)):
                some = native_attention(q[first:], keys[first:], values[first:], places[first:])
                assert torch.equal(some, alone[first:])
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", range(3))
def test_no_number_stays_with_those_who_see_it(where: int, bad: float) -> None:
    torch.manual_seed(0)
    q, keys, values = torch.randn(3, 6, 4, 16), *torch.randn(2, 3, 2, 90, 16)
    places = torch.arange(84, 90).expand(3, 6).contiguous()
    before = native_attention(q, keys, values, places)
    hurt = (q, keys, values)[where]
    if where == 0:
        hurt[1, 3, 2, 5] = bad
    else:
        hurt[1, 1, 87, 5] = bad
    after = native_attention(q, keys, values, places)
    changed = torch.zeros(3, 6, 4, dtype=torch.bool)
    if where == 0:
        changed[1, 3, 2] = True
    else:
        changed[1, 3:, 2:] = True
    assert torch.equal(after[~changed], before[~changed])
    mask = (torch.arange(90) <= places[:, :, None])[:, None]
    torch_s = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask, enable_gqa=True)
    if where == 0 or math.isnan(bad):  # a mask of torch lets what is infinite through to those who do not see it
        assert torch.equal(after[changed].isnan(), torch_s.transpose(1, 2)[changed].isnan())
    elif where == 2:
        assert bool((after[changed][:, 5] == torch.inf).all())


@pytest.mark.usefixtures("compiler")
def test_attention_can_be_traced() -> None:
    given = (*attention(2, 3, 4, 2, 16, 20), None)
    torch.library.opcheck(native._traced_attention, given, test_utils=("test_schema", "test_faketensor"))

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(q: Tensor) -> Tensor:
        return torch.ops.anymodal.native_attention(q, *given[1:]) + 1

    assert torch.equal(compiled(given[0]), native_attention(*given[:4]) + 1)


@pytest.mark.usefixtures("compiler")
def test_attention_that_the_kernel_cannot_read_is_refused() -> None:
    q, keys, values, places = attention(2, 3, 4, 2, 16, 20)
    wrong = [
        (q.double(), keys, values, places),
        (q.bfloat16(), keys.bfloat16(), values.bfloat16(), places),
        (q, keys.bfloat16(), values, places),
        (q, keys.half(), values.half(), places),
        (q, keys, values, places.int()),
        (q, keys, values[:, :, 1:], places),
        (q, keys, values, places[:, 1:]),
        (q[:, :, 1:], keys, values, places),
        (q, keys.mT.contiguous().mT, values, places),
        (q.clone().requires_grad_(), keys, values, places),
    ]
    for each in wrong:
        with pytest.raises(ValueError, match="native kernel attends"):
            load_kernel().attention(*each)
    for place in (-1, 20):
        with pytest.raises(ValueError, match=r"places must lie in \[0, 20\)"):
            native_attention(q, keys, values, torch.full_like(places, place))
    assert native_attention(q[:0], keys[:0], values[:0], places[:0]).shape == (0, 3, 4, 16)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("width", [1, 7, 16, 77, 512])
def test_rms_norm_is_that_of_float64(width: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 3, 2 * width)[..., ::2], torch.randn(width)
    y = native_rms_norm(x, weight, 1e-5)
    assert (y.dtype, y.shape) == (torch.float32, x.shape)
    torch.testing.assert_close(y.double(), F.rms_norm(x.double(), (width,), weight.double(), 1e-5), atol=0, rtol=1e-6)
    assert torch.equal(native_rms_norm(x[2, 1], weight, 1e-5), y[2, 1])
    x[1, 1] = torch.nan
    assert torch.equal(native_rms_norm(x, weight, 1e-5).isnan(), x.isnan())
    for wrong in ((x.double(), weight), (x, weight.double()), (x, weight[1:]), (x.clone().requires_grad_(), weight)):
        with pytest.raises(ValueError, match="native kernel normalises"):
            load_kernel().rms_norm(*wrong, 1e-5)


@pytest.mark.usefixtures("compiler")
def test_gelu_is_that_of_float64() -> None:
    x = torch.randn(5, 2 * 77)[:, ::2] * 4
    x[0, :3] = torch.tensor([torch.nan, torch.inf, 0.0])
    y = native_gelu(x)
    assert (y.dtype, y.shape) == (torch.float32, x.shape)
    torch.testing.assert_close(y.double(), F.gelu(x.double()), atol=1e-6, rtol=1e-6, equal_nan=True)
    for wrong in (x.double(), x.clone().requires_grad_()):
        with pytest.raises(ValueError, match="native kernel computes GELU"):
            load_kernel().gelu(wrong)


@pytest.mark.usefixtures("compiler")
def test_noise_is_torchs_to_the_last_bit() -> None:
    seeds = torch.tensor([0, 7, -3, 2**62, -(2**63)])
    positions, ids = torch.tensor([0, 130, 9, 5, 8190]), torch.arange(100_000)
    noise = native_gumbel(seeds, positions, ids)
    assert noise.dtype == torch.float32
    assert torch.equal(noise, gumbel(seeds, positions, ids, torch.float32))
    assert torch.equal(native_gumbel(seeds[1:2], positions[1:2], ids[5:]), noise[1:2, 5:])
    assert torch.equal(native_gumbel(seeds, positions, ids[:9], torch.float64), gumbel(seeds, positions, ids[:9]))


@pytest.mark.usefixtures("compiler")
def test_kernel_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[str] = []
    run = native._run

    def noted(command: list[str], source: bytes = b"") -> bytes:
        made.extend(command)
        return run(command, source)

    monkeypatch.setattr(native, "_run", noted)
    first = build_kernel()
    assert made.count("-o") == 1
    assert build_kernel() == first
    assert made.count("-o") == 1
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    assert first.parent.stat().st_mode & 0o777 == 0o700
    first.chmod(0o770)
    with pytest.raises(ValueError, match="open to nobody else"):
        build_kernel()


@pytest.mark.usefixtures("compiler")
def test_folder_that_others_may_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".cache" / "anymodal" / "native"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(ValueError, match="open to nobody else"):
        build_kernel()


def test_without_a_compiler_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="needs a C compiler.*leave `native` off"):
        build_kernel()
    broken = tmp_path / "bin" / "cc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no space >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent))
    with pytest.raises(ValueError, match="could not compile.*no space"):
        build_kernel()
    assert not asked_for_the_kernel()


def test_without_a_folder_for_it_torch_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()  # root may write everywhere, but not below a file
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level("INFO"):
        assert not asked_for_the_kernel()
        assert not native.has_kernel()
    assert [record.getMessage()[:22] for record in caplog.records] == ["torch's operators samp"]
    load_kernel.cache_clear()
    native.has_kernel.cache_clear()


def asked_for_the_kernel() -> bool:
    load_kernel.cache_clear()
    native.has_kernel.cache_clear()
    return native.has_kernel()
