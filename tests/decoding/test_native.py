import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec

import pytest
import torch
from torch import Tensor

from anymodal.decoding import native
from anymodal.decoding.native import COMPILERS, WEIGHTS_A_THREAD, build_kernel, load_kernel, native_linear

P = ParamSpec("P")
DTYPES = (torch.float32, torch.bfloat16, torch.int8)


def needs_compiler(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test where there is a compiler; elsewhere see that this is said."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if any(map(shutil.which, COMPILERS)):
            test(*args, **kwargs)
        else:
            with pytest.raises(ValueError, match="needs a C compiler"):
                build_kernel()

    return run


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the kernel in a folder of the test run."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        load_kernel.cache_clear()
        yield folder
    load_kernel.cache_clear()


def weights(out: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    if dtype == torch.int8:
        return torch.randint(-127, 128, (out, width), dtype=dtype), torch.rand(out)
    return torch.randn(out, width).to(dtype), None


@needs_compiler
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
        size = x.double().abs() @ wide.abs().T
        assert bool(((y - x.double() @ wide.T).abs() <= 1e-6 * size).all())


@needs_compiler
def test_axes_before_the_last_are_rows() -> None:
    weight, _ = weights(5, 12, torch.bfloat16)
    x = torch.randn(12, 3, 2).permute(2, 1, 0)
    torch.testing.assert_close(native_linear(x, weight), x @ weight.float().T)
    assert native_linear(x[0, 0], weight).shape == (5,)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_depends_neither_on_others_nor_on_threads(dtype: torch.dtype) -> None:
    out, width = 517, 301
    assert out * width >= 2 * WEIGHTS_A_THREAD, "large enough for two threads"
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


@needs_compiler
def test_operator_can_be_traced() -> None:
    weight, scale = weights(5, 12, torch.int8)
    x = torch.randn(2, 12)
    torch.library.opcheck(native._traced, (x, weight, scale), test_utils=("test_schema", "test_faketensor"))

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(x: Tensor) -> Tensor:
        return torch.ops.anymodal.native_linear(x, weight, scale) + 1

    assert torch.equal(compiled(x), native_linear(x, weight, scale) + 1)


@needs_compiler
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


@needs_compiler
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


@needs_compiler
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
