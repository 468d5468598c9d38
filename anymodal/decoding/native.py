"""The optional kernel: what few rows need of a model, in C, compiled on this machine when it is first asked for."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import struct
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anymodal.decoding.noise import gumbel, gumbel_of

COMPILERS = ("cc", "gcc", "clang")
SOURCES = ("native.c", "native_int8.c", "native_tiles.c", "native_attention.c", "native_blocks.c")
"""What the library is compiled from, as one."""

ATTENTION = struct.Struct("21qf4x")
"""The C struct `attention`."""

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}

KEPT = (torch.float32, torch.bfloat16)
"""What keys and values may be kept in."""

LINE, GROUP = 64, 8
"""Numbers and rows, of which such products take a multiple."""


def native_linear(
    x: Float[Tensor, "*b i"], weight: Tensor, scale: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*b o"]:
    """Multiply float32 rows with weights [o, i] in float32, bfloat16 or int8, times `scale` of every output.

    The result of a row depends neither on the other rows nor on the number of threads, to the last bit. There is no
    gradient, and for many rows torch is faster.

    Raises:
        ValueError: there is no compiler, or the tensors are not what the kernel reads.
    """
    if torch.compiler.is_compiling():
        return _traced(x, weight, scale)
    return load_kernel().linear(x, weight, scale)


def native_attention(
    q: Float[Tensor, "b n heads head_dim"],
    keys: Float[Tensor, "b kv_heads m head_dim"],
    values: Float[Tensor, "b kv_heads m head_dim"],
    places: Int[Tensor, "b n"],
    scale: float | None = None,
) -> Float[Tensor, "b n heads head_dim"]:
    """Attend to a cache in float32 or bfloat16: query [b, n] sees keys 0 to `places[b, n]`, and nothing else is read.

    `scale` is one over the root of head_dim, unless given. The result of a query depends neither on other queries and
    rows, nor on how much of the cache is shown, nor on the number of threads, to the last bit. There is no gradient.

    Raises:
        ValueError: there is no compiler, the tensors are not what the kernel reads, or a place is not shown.
    """
    if torch.compiler.is_compiling():
        return _traced_attention(q, keys, values, places, scale)
    return load_kernel().attention(q, keys, values, places, scale)


def native_rms_norm(x: Float[Tensor, "*b d"], weight: Float[Tensor, " d"], eps: float) -> Float[Tensor, "*b d"]:
    """Divide float32 rows by the root of their mean square plus `eps`, times a weight (arXiv:1910.07467).

    Raises:
        ValueError: there is no compiler, or the tensors are not what the kernel reads.
    """
    return load_kernel().rms_norm(x, weight, eps)


def native_gelu(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """Compute GELU of float32 numbers by its error function (arXiv:1606.08415).

    Raises:
        ValueError: there is no compiler, or the tensor is not what the kernel reads.
    """
    return load_kernel().gelu(x)


def native_gumbel(
    seeds: Int[Tensor, " b"], positions: Int[Tensor, " b"], ids: Int[Tensor, " v"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "b v"]:
    """Compute `gumbel` to the last bit; for other types than float32 torch does it.

    Raises:
        ValueError: there is no compiler.
    """
    if dtype is not torch.float32:
        return gumbel(seeds, positions, ids, dtype)
    return gumbel_of(load_kernel().uniform(seeds, positions, ids))


@torch.library.custom_op("anymodal::native_linear", mutates_args=())
def _traced(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    return load_kernel().linear(x, weight, scale)


@_traced.register_fake
def _shape_of(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("anymodal::native_attention", mutates_args=())
def _traced_attention(q: Tensor, keys: Tensor, values: Tensor, places: Tensor, scale: float | None) -> Tensor:
    return load_kernel().attention(q, keys, values, places, scale)


@_traced_attention.register_fake
def _shape_of_attention(q: Tensor, keys: Tensor, values: Tensor, places: Tensor, scale: float | None) -> Tensor:
    return q.new_empty(q.shape)


class Kernel:
    """The compiled kernel, on torch's own threads; where torch has no OpenMP of the GNU kind, on one."""

    def __init__(self, library: Path) -> None:
        """Load a library that `build_kernel` has made."""
        loaded = ctypes.CDLL(str(library))
        self.use_tiles = loaded.anymodal_use_tiles
        """Multiply by tiles of a matrix unit, or not; return whether that is so, for which there must be one."""
        self.use_tiles.argtypes, self.use_tiles.restype = (ctypes.c_int64,), ctypes.c_int64
        self.use_tiles(1)
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._linear = loaded.anymodal_linear
        self._linear.argtypes = (size, size, pointer, pointer, pointer, pointer, size, size, size, pointer)
        self._linear.restype = None
        self._attention = loaded.anymodal_attention
        self._attention.argtypes = (pointer, size)
        self._attention.restype = size
        self._gelu = loaded.anymodal_gelu
        self._gelu.argtypes = (pointer, pointer, size)
        self._gelu.restype = None
        self._uniform = loaded.anymodal_uniform
        self._uniform.argtypes = (pointer, pointer, pointer, pointer, size, size)
        self._uniform.restype = None
        self.blocks = loaded.anymodal_blocks
        """Pass hidden states through all blocks: a pointer to what `native_blocks` describes, and the threads."""
        self.blocks.argtypes = (pointer, size)
        self.blocks.restype = size
        self._rms_norm = loaded.anymodal_rms_norm
        self._rms_norm.argtypes = (pointer, pointer, pointer, size, size, ctypes.c_float)
        self._rms_norm.restype = None
        torch_and_its_libraries = ctypes.CDLL(torch._C.__file__)
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        found = [getattr(torch_and_its_libraries, name, None) for name in names]
        self.threaded = None not in found
        if self.threaded:
            loaded.anymodal_use_openmp.argtypes = (pointer,) * len(names)
            loaded.anymodal_use_openmp.restype = None
            loaded.anymodal_use_openmp(*(ctypes.cast(each, pointer) for each in found if each is not None))

    def linear(self, x: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
        """Compute `native_linear` without torch's dispatcher, which costs as much as a small product.

        Raises:
            ValueError: the tensors are not what the kernel reads.
        """
        shape, (out, width), kind = x.shape, weight.shape, KINDS.get(weight.dtype)
        if (
            kind is None
            or shape[-1] != width
            or x.dtype is not torch.float32
            or not (x.is_cpu and weight.is_cpu and weight.is_contiguous())
            or not (scale is None or _fits(scale, out))
            or _wants_gradients(x)
        ):
            raise ValueError(
                "the native kernel multiplies float32 rows of the CPU, without gradients, with contiguous weights "
                "[out, in] in float32, bfloat16 or int8 and a float32 scale [out]; got "
                f"{_describe(x)}, {_describe(weight)} and {'no scale' if scale is None else _describe(scale)}; "
                "use torch.inference_mode(), or leave `native` off."
            )
        x = x.contiguous()
        y = x.new_empty((*shape[:-1], out))
        threads, scales = torch.get_num_threads(), None if scale is None else scale.data_ptr()
        rows = x.numel() // width
        room = x.new_empty(room_of(rows, width)) if kind != KINDS[torch.float32] else None
        pointers = y.data_ptr(), x.data_ptr(), weight.data_ptr(), scales
        self._linear(kind, threads, *pointers, rows, width, out, None if room is None else room.data_ptr())
        return y

    def attention(self, q: Tensor, keys: Tensor, values: Tensor, places: Tensor, scale: float | None = None) -> Tensor:
        """Compute `native_attention` without torch's dispatcher.

        Raises:
            ValueError: the tensors are not what the kernel reads, or a place is not shown.
        """
        rows, count, heads, width = q.shape
        kv_heads, shown = keys.shape[1:3]
        strides = (*q.stride(), *keys.stride(), *values.stride())
        if (
            q.dtype is not torch.float32
            or keys.dtype not in KEPT
            or values.dtype is not keys.dtype
            or places.dtype is not torch.int64
            or keys.shape != (rows, kv_heads, shown, width)
            or values.shape != keys.shape
            or places.shape != (rows, count)
            or not kv_heads
            or heads % kv_heads
            or (width > 1 and strides[3::4] != (1, 1, 1))
            or not (q.is_cpu and keys.is_cpu and values.is_cpu and places.is_cpu and places.is_contiguous())
            or _wants_gradients(q, keys, values)
        ):
            raise ValueError(
                "the native kernel attends with float32 queries [b, n, heads, head_dim] of the CPU, without gradients, "
                "to keys and values [b, kv_heads, m, head_dim] in float32 or bfloat16 up to int64 places [b, n], "
                f"features next to each other; got {', '.join(map(_describe, (q, keys, values, places)))}; use "
                "torch.inference_mode(), or leave `native` off."
            )
        y = q.new_empty(q.shape)
        pointers = y.data_ptr(), q.data_ptr(), keys.data_ptr(), values.data_ptr(), places.data_ptr()
        sizes = KINDS[keys.dtype], rows, count, heads, kv_heads, width, shown
        scale = width**-0.5 if scale is None else scale
        steps = *strides[:3], *strides[4:7], *strides[8:11]
        if not self._attention(ATTENTION.pack(*pointers, *sizes, *steps, scale), torch.get_num_threads()):
            raise ValueError(f"places must lie in [0, {shown}), got {places.tolist()}; show more of the cache.")
        return y

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Compute `native_rms_norm`.

        Raises:
            ValueError: the tensors are not what the kernel reads.
        """
        width = x.shape[-1]
        if x.dtype is not torch.float32 or not (x.is_cpu and _fits(weight, width)) or _wants_gradients(x, weight):
            raise ValueError(
                "the native kernel normalises float32 rows of the CPU, without gradients, with a float32 weight a "
                f"feature; got {_describe(x)} and {_describe(weight)}; use torch.inference_mode(), or leave `native` "
                "off."
            )
        x = x.contiguous()
        y = x.new_empty(x.shape)
        self._rms_norm(y.data_ptr(), x.data_ptr(), weight.data_ptr(), x.numel() // width, width, eps)
        return y

    def gelu(self, x: Tensor) -> Tensor:
        """Compute `native_gelu`.

        Raises:
            ValueError: the tensor is not what the kernel reads.
        """
        if x.dtype is not torch.float32 or not x.is_cpu or _wants_gradients(x):
            raise ValueError(
                "the native kernel computes GELU of float32 numbers of the CPU, without gradients; got "
                f"{_describe(x)}; use torch.inference_mode(), or leave `native` off."
            )
        x = x.contiguous()
        y = x.new_empty(x.shape)
        self._gelu(y.data_ptr(), x.data_ptr(), x.numel())
        return y

    def uniform(self, seeds: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
        """Return the uniform numbers [b, v] of `gumbel`, in float32."""
        given = [each.long().contiguous() for each in (seeds, positions, ids)]
        y = torch.empty(len(seeds), len(ids))
        self._uniform(y.data_ptr(), *(each.data_ptr() for each in given), len(seeds), len(ids))
        return y


def room_of(rows: int, width: int) -> int:
    """Return how many float32 numbers a product with bfloat16 or int8 takes, to order or round its rows."""
    return -(-rows // GROUP) * GROUP * (-(-width // LINE) * LINE + 1) + LINE


@functools.cache
def has_kernel() -> bool:
    """Tell whether this machine has the kernel, or compiles it now; where it cannot, the log says why, once."""
    try:
        load_kernel()
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: there is no home for the cache folder
        logging.getLogger(__name__).info("torch's operators sample, slower than the native kernel: %s", error)
        return False
    return True


@functools.cache
def load_kernel() -> Kernel:
    """Return the kernel; the first call on a machine compiles it.

    Raises:
        ValueError: there is no compiler, it fails, or the cache folder is not private.
    """
    return Kernel(build_kernel())


def build_kernel() -> Path:
    """Return the compiled library from the user's cache folder, where one for this source, compiler and CPU is kept.

    Raises:
        ValueError: there is no compiler, it fails, or the cache folder is not private.
        OSError: the cache folder cannot be written.
    """
    if os.name != "posix":
        raise ValueError("the native kernel is built on Linux and macOS alone; leave `native` off.")
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise ValueError(
            f"the native kernel needs a C compiler, and none of {', '.join(COMPILERS)} is on the PATH; "
            "install one (package gcc or clang), or leave `native` off."
        )
    tune = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    flags = ("-std=gnu11", "-O3", tune, "-fno-math-errno", "-Wno-psabi", "-fPIC", "-shared")
    command = [compiler, *flags, "-x", "c", "-", "-lm"]
    folder_of_sources = resources.files("anymodal.decoding")
    source = b"".join((folder_of_sources / name).read_bytes() for name in SOURCES)
    macros = _run([compiler, tune, "-dM", "-E", "-x", "c", os.devnull])  # the compiler's version, the CPU's features
    key = hashlib.sha256(b"\0".join((source, macros, " ".join(command).encode()))).hexdigest()
    folder = _private_folder()
    library = folder / f"native-{key[:32]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / library.name
            _run([*command, "-o", str(made)], source)
            made.chmod(stat.S_IRWXU)
            made.replace(library)
    _check_mine(library)
    return library


def _run(command: list[str], source: bytes = b"") -> bytes:
    run = subprocess.run(command, input=source, capture_output=True, check=False)
    if run.returncode:
        said = run.stderr.decode("utf-8", errors="replace").strip()[-400:]
        raise ValueError(
            f"{command[0]} could not compile the native kernel ({said}); install another compiler, or leave "
            "`native` off."
        )
    return run.stdout


def _private_folder() -> Path:
    """Make the cache folder, which nobody else may write."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (named if named.is_absolute() else Path.home() / ".cache") / "anymodal" / "native"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=stat.S_IRWXU, exist_ok=True)
    _check_mine(folder)
    return folder


def _check_mine(path: Path) -> None:
    """Refuse what another user owns or may write: loading a library runs it."""
    found = path.lstat()
    mine = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    if stat.S_ISLNK(found.st_mode) or not mine:
        raise ValueError(
            f"{path} must be yours and open to nobody else, as the native kernel is loaded from there; it has mode "
            f"{stat.filemode(found.st_mode)} and belongs to user {found.st_uid}. Remove it and try again."
        )


def _fits(scale: Tensor, out: int) -> bool:
    return scale.dtype is torch.float32 and scale.shape == (out,) and scale.is_contiguous() and scale.is_cpu


def _wants_gradients(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device.type}"
