"""All blocks of a transformer in one call of the native kernel, where rows are few."""

import ctypes
from collections.abc import Iterator
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anymodal.decoding.native import KEPT, KINDS, load_kernel, room_of
from anymodal.model.cache import CacheStep
from anymodal.model.elementwise import rotary_table
from anymodal.model.transformer import Block, HeadNorm, Transformer

NATIVE_ROWS = 64
"""Up to this many rows the native kernel was measured to be no slower than torch."""

NATIVE_QUERIES = 8
"""The same of a row's queries and the native attention."""

POINTER, SIZE = ctypes.c_void_p, ctypes.c_int64


class _Matrix(ctypes.Structure):
    """The C struct `matrix`."""

    _fields_ = (("kind", SIZE), ("in", SIZE), ("out", SIZE), ("w", POINTER), ("scale", POINTER), ("bias", POINTER))


class _HeadNorm(ctypes.Structure):
    """The C struct `head_norm`."""

    _fields_ = (("weight", POINTER), ("bias", POINTER))


class _Block(ctypes.Structure):
    """The C struct `block`."""

    _fields_ = (
        ("attention_norm", POINTER), ("feed_forward_norm", POINTER), ("q_norm", _HeadNorm), ("k_norm", _HeadNorm),
        ("qkv", 3 * _Matrix), ("o", _Matrix), ("gate_up", 2 * _Matrix), ("down", _Matrix),
    )  # fmt: skip


class _Stack(ctypes.Structure):
    """The C struct `stack`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "room", "places", "keys", "values", "turns", "layers", "norm")),
        *((name, SIZE) for name in ("rows", "queries", "depth", "dim", "heads", "kv_heads", "width", "hidden")),
        *((name, SIZE) for name in ("shown", "layer_step", "row_step", "head_step", "key_step", "turn_step")),
        *((name, SIZE) for name in ("kept", "swin")),
        ("eps", ctypes.c_float), ("head_eps", ctypes.c_float),
    )  # fmt: skip


class Readable(nn.Module):
    """A layer that does nothing but what the kernel does with its weights."""


class NativeBlocks:
    """Pass hidden states through a light transformer as it would itself, keys and values of the cache included.

    It reads the weights where they lie, in float32, bfloat16 or int8. The result of a row depends neither on the other
    rows nor on the number of threads, to the last bit. A copy of a model has no such blocks, and leaves it to torch.

    Attributes:
        cache_dtype: what keys and values are best kept in, of which a long sequence reads more than weights.
    """

    def __init__(self, transformer: Transformer, cache_dtype: torch.dtype = torch.float32) -> None:
        """Note where the weights lie; the layers are those of `lighten`."""
        config = self.config = transformer.config
        self.cache_dtype = cache_dtype
        self._kernel = load_kernel()
        self._turns = self._angles(config.max_seq_len)
        between = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim + 2 * config.hidden_dim
        widest = max(config.num_heads * config.head_dim, config.hidden_dim)
        self._room, self._widest = config.dim + between + widest, max(widest, config.dim)
        self._sizes = {
            "depth": config.depth, "dim": config.dim, "heads": config.num_heads, "kv_heads": config.num_kv_heads,
            "width": config.head_dim, "hidden": config.hidden_dim, "swin": config.norm_position == "swin",
            "eps": config.norm_eps, "head_eps": next(_head_eps(transformer), config.norm_eps),
        }  # fmt: skip
        self.look_again(transformer)

    def look_again(self, transformer: Transformer) -> None:
        """Note where the weights of the transformer lie now; what the kernel cannot read is left to torch."""
        self._kept, self._fixed = list[Tensor](), dict[str, object]()
        if not _is_readable(transformer):
            return
        blocks = [self._block(cast(Block, block)) for block in transformer.blocks]
        self._blocks = (_Block * self.config.depth)(*blocks)
        norm = self._at(transformer.norm.weight)
        self._fixed = {"layers": ctypes.addressof(self._blocks), "norm": norm, **self._sizes}

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Copy as None: a copied model has its weights elsewhere."""
        return type(None), ()

    def __call__(self, x: Float[Tensor, "b n d"], step: CacheStep) -> Float[Tensor, "b n d"] | None:
        """Return normalised hidden states, or None where torch or a compiler is to do it.

        Raises:
            ValueError: a place is not shown.
        """
        if torch.compiler.is_compiling() or not self._fixed:
            return None
        rows, queries, _ = x.shape
        keys, values, places = step.keys, step.values, step.places
        shown, steps = keys.shape[3], keys.stride()
        if (
            torch.is_grad_enabled()
            or queries > NATIVE_QUERIES
            or rows * queries > NATIVE_ROWS
            or x.dtype is not torch.float32
            or keys.dtype not in KEPT
            or values.dtype is not keys.dtype
            or not (x.is_cpu and keys.is_cpu and places.is_contiguous())
            or values.stride() != steps
            or steps[4] != 1
        ):
            return None
        if shown > self._turns.shape[1]:
            self._turns = self._angles(shown)
        turns = self._turns
        count = rows * queries
        y = x.clone(memory_format=torch.contiguous_format)
        room = x.new_empty(count * self._room + room_of(count, self._widest))
        stack = _Stack(
            x=y.data_ptr(), room=room.data_ptr(), places=places.data_ptr(), keys=keys.data_ptr(),
            values=values.data_ptr(), turns=turns.data_ptr(), rows=rows, queries=queries, shown=shown,
            layer_step=steps[0], row_step=steps[1], head_step=steps[2], key_step=steps[3], turn_step=turns.stride(0),
            kept=KINDS[keys.dtype], **self._fixed,
        )  # fmt: skip
        if not self._kernel.blocks(ctypes.addressof(stack), torch.get_num_threads()):
            raise ValueError(f"places must lie in [0, {shown}), got {places.tolist()}; show more of the cache.")
        return y

    def _angles(self, count: int) -> Float[Tensor, "2 m r"]:
        """Return cosines and sines of the first places."""
        return rotary_table(torch.arange(count)[None], self.config.head_dim, self.config.rope_theta)[:, 0].float()

    def _block(self, block: Block) -> _Block:
        attention, feed_forward = block.attention, block.feed_forward
        if attention.qkv_proj is None:
            qkv = [self._matrix(linear) for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
        else:
            qkv = [self._matrix(attention.qkv_proj)]
        if feed_forward.gate_up_proj is None:
            gate_up = [self._matrix(linear) for linear in (feed_forward.gate_proj, feed_forward.up_proj)]
        else:
            gate_up = [self._matrix(feed_forward.gate_up_proj)]
        norms = block.attention_norm.weight, block.feed_forward_norm.weight
        heads = (self._head_norm(norm) for norm in (attention.q_norm, attention.k_norm))
        out, down = self._matrix(attention.o_proj), self._matrix(feed_forward.down_proj)
        return _Block(*map(self._at, norms), *heads, (_Matrix * 3)(*qkv), out, (_Matrix * 2)(*gate_up), down)

    def _matrix(self, linear: nn.Module) -> _Matrix:
        weight = cast(Tensor, linear.weight)
        (out, width), scale = weight.shape, getattr(linear, "scale", None)
        return _Matrix(KINDS[weight.dtype], width, out, self._at(weight), self._at(scale), self._at(linear.bias))

    def _head_norm(self, norm: nn.Module) -> _HeadNorm:
        return _HeadNorm(self._at(getattr(norm, "weight", None)), self._at(getattr(norm, "bias", None)))

    def _at(self, values: object) -> int | None:
        """Return where values lie, which stay there for as long as this lives; all but weights become float32."""
        if not isinstance(values, Tensor):
            return None
        values = values.detach() if values.ndim > 1 else values.detach().float()
        self._kept.append(values.contiguous())
        return self._kept[-1].data_ptr()


def _is_readable(transformer: Transformer) -> bool:
    """Tell whether the kernel may read the weights, and nobody else has put anything between them."""
    modules = list(transformer.modules())
    linears: list[nn.Module] = [module for module in modules if isinstance(module, nn.Linear | Readable)]
    linears += [child for module in modules for name, child in module.named_children() if name.endswith("_proj")]
    weights = [getattr(linear, "weight", None) for linear in linears]
    return (
        all(isinstance(linear, Readable) for linear in linears)
        and all(w is not None and w.is_cpu and w.dtype in KINDS and w.is_contiguous() for w in weights)
        and not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    )


def _head_eps(transformer: Transformer) -> Iterator[float]:
    return (module.eps for module in transformer.modules() if isinstance(module, HeadNorm))
