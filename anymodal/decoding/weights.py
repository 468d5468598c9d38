"""Weight formats for sampling on a CPU, where the time goes into reading weights; the stream stays float32."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from anymodal.decoding.native import KEPT, load_kernel, native_attention, native_gelu, native_linear, native_rms_norm
from anymodal.decoding.native_blocks import NATIVE_QUERIES, NATIVE_ROWS, NativeBlocks, Readable
from anymodal.decoding.pages import move_to_large_pages
from anymodal.model.transformer import Attention
from anymodal.model.unified import AnyModal

INT8_ROWS = 16
"""Up to this many rows torch's int8 product was measured to be faster than widened weights."""

BFLOAT16_ROWS = 8
"""The same of the bfloat16 product, on a CPU that has no instructions for it."""

INT8_STRIDE = 16
"""Torch's int8 product reads past the end of rows whose length is no multiple of this."""

JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers that read the same become one: few products of few rows are faster than many."""

WIDENED = 2**18
"""Weights that are widened at once: few enough to stay in the cache."""


class Float32Linear(Readable, nn.Linear):
    """A linear layer on float32 weights with the native kernel; the weights are shared with where they come from.

    Torch computes where rows are many, gradients are wanted, or weights have become something else.

    >>> Float32Linear(torch.ones(5, 3)).weight.dtype
    torch.float32
    """

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None) -> None:
        """Keep the weights; parameters stay what they are, of other tensors no gradient is wanted."""
        super().__init__(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        self.weight = _kept(weight)
        self.bias = None if bias is None else _kept(bias)  # type: ignore[assignment]

    def forward(self, input: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """Multiply."""
        return _product(input, self.weight, self.bias)


class BFloat16Linear(Readable, nn.Linear):
    """A linear layer on bfloat16 weights; what comes and goes is float32.

    >>> layer = BFloat16Linear(torch.ones(5, 3))
    >>> layer.weight.dtype, layer(torch.ones(1, 3)).dtype
    (torch.bfloat16, torch.float32)
    """

    def __init__(
        self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None, *, native: bool = False
    ) -> None:
        """Round the weights, without gradients; `native` multiplies few rows with the native kernel."""
        super().__init__(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        self.weight = _fixed(weight.bfloat16())
        self.bias = None if bias is None else _fixed(bias.bfloat16())  # type: ignore[assignment]
        self.native, self.widens = native, _lacks_bfloat16()

    def select(self, rows: Int[Tensor, " k"]) -> "BFloat16Linear":
        """Return the layer that computes these outputs alone; outputs that follow each other share its memory."""
        bias = None if self.bias is None else _pick(self.bias, rows)
        return BFloat16Linear(_pick(self.weight, rows), bias, native=self.native)

    def forward(self, input: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """Multiply."""
        count = _count(input)
        if self.native and count <= NATIVE_ROWS:
            y = native_linear(input, self.weight)
        elif self.widens and count > BFLOAT16_ROWS:
            y = _widened(input, self.weight, torch.float32)
        else:
            y = F.linear(input.bfloat16(), self.weight).float()
        return y if self.bias is None else y + self.bias


class Int8Linear(Readable):
    """A linear layer on int8 weights with a float32 scale for every output; what comes and goes is float32.

    >>> Int8Linear.of(nn.Linear(3, 5)).weight.dtype
    torch.int8
    """

    weight: Tensor  # int8 [out, in]
    scale: Tensor  # float32 [out]
    bias: Tensor | None
    ones: Tensor

    def __init__(
        self,
        weight: Int[Tensor, "o i"],
        scale: Float[Tensor, " o"],
        bias: Float[Tensor, " o"] | None = None,
        *,
        native: bool = False,
    ) -> None:
        """Keep rounded weights; `native` multiplies few rows with the native kernel."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("scale", scale.float().contiguous())
        self.register_buffer("bias", None if bias is None else bias.float())
        self.register_buffer("ones", torch.ones(len(scale), dtype=torch.bfloat16), persistent=False)
        self.native, self.wide_type = native, torch.float32 if _lacks_bfloat16() else torch.bfloat16

    @classmethod
    def of(cls, linear: nn.Linear, *, native: bool = False) -> "Int8Linear":
        """Round the weights to 255 steps, symmetric for every output.

        Raises:
            ValueError: a weight is not a number.
        """
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1) / 127
        if not bool(torch.isfinite(scale).all()):
            raise ValueError("weights that are not finite cannot be rounded to int8; check the model.")
        scale = torch.where(scale > 0, scale, 1.0)
        rounded = (weight / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        return cls(rounded, scale, None if linear.bias is None else linear.bias.detach(), native=native)

    def select(self, rows: Int[Tensor, " k"]) -> "Int8Linear":
        """Return the layer that computes these outputs alone; outputs that follow each other share its memory."""
        bias = None if self.bias is None else _pick(self.bias, rows)
        return Int8Linear(_pick(self.weight, rows), _pick(self.scale, rows), bias, native=self.native)

    def forward(self, input: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """Multiply; without the kernel, in bfloat16 where rows are few: with float32 rows torch is far slower."""
        count = _count(input)
        if self.native and count <= NATIVE_ROWS:
            y = native_linear(input, self.weight, self.scale)
        elif count > INT8_ROWS or self.in_features % INT8_STRIDE:
            y = _widened(input, self.weight, self.wide_type) * self.scale
        else:
            rows = input.reshape(-1, self.in_features).bfloat16()
            y = torch._weight_int8pack_mm(rows, self.weight, self.ones) * self.scale
            y = y.view(*input.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias


class NativeRMSNorm(nn.RMSNorm):
    """RMSNorm of float32 rows with the native kernel; the weight is shared with the norm that it replaces.

    >>> list(NativeRMSNorm(nn.RMSNorm(3, eps=1e-6)).state_dict())
    ['weight']
    """

    def __init__(self, norm: nn.RMSNorm) -> None:
        """Keep the weight."""
        assert norm.weight is not None, "a norm of the transformer has a weight"
        assert norm.eps is not None, "a norm of the transformer has its own eps"
        super().__init__(norm.weight.shape[0], eps=norm.eps, device="meta")
        self.weight, self.added = _kept(norm.weight), norm.eps

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Normalise; a compiler does it as fast by itself."""
        if torch.compiler.is_compiling() or not _suits_kernel(x, self.weight):
            return super().forward(x)
        return native_rms_norm(x, self.weight, self.added)


class NativeGELU(nn.GELU):
    """GELU with the native kernel where rows are few: a call of torch's takes longer than what it computes.

    >>> NativeGELU()(torch.zeros(65, 2)).shape
    torch.Size([65, 2])
    """

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Transform every number."""
        if torch.compiler.is_compiling() or _count(x) > NATIVE_ROWS or not _suits_kernel(x):
            return super().forward(x)
        return native_gelu(x)


Kind = Literal["float32", "bfloat16", "int8"]
LightLinear = Float32Linear | BFloat16Linear | Int8Linear


def lighten(model: AnyModal, kind: Kind, *, native: bool = False) -> None:
    """Replace the linear layers of the blocks and heads of a model, one at a time, and make all else float32.

    With `native`, few rows pass all blocks in one call of the kernel, keys and values of the cache included; where they
    are too many for that, and in what stands around the blocks, products, norms and attention get it one by one. The
    weights move to memory of their own, and keys and values are kept in bfloat16 beside rounded ones.

    With rounded weights a model samples and no longer trains: no weight of it wants a gradient. A head that is tied to
    its embedding gets weights of its own. Save a model before: int8 has tensors that a model folder does not know. With
    "float32" it stays what it was: its parameters are the same, it trains and is saved, and an engine that begins reads
    the weights as they are then.

    Raises:
        ValueError: the model is light already or not on the CPU, float32 is asked for without the kernel, or there is
            no compiler for it.
    """
    if kind == "float32" and not native:
        raise ValueError("float32 weights are what a model has; ask for the native kernel, or for bfloat16 or int8.")
    if model.device.type != "cpu":
        raise ValueError(f"light weights are for sampling on a CPU, the model lies on {model.device}; move it first.")
    if is_light(model) or model.transformer.stack is not None:
        raise ValueError("the model is light already; load it again to give its weights another format.")
    if native:
        load_kernel()  # where there is no compiler, before anything has changed
    if kind != "float32":
        model.requires_grad_(False)
    parents = [*model.transformer.blocks.modules(), model]
    parents += [model.image_head] if model.config.heads == "decoupled" else []
    linears = {child for parent in parents for child in parent.children() if isinstance(child, nn.Linear)}
    _widen(model, linears if kind != "float32" else set())
    copied = kind == "int8" or (kind == "bfloat16" and native)  # else parameters stay, such as those of a mapped file
    for parent in parents:
        for joined in JOINED if copied else ():
            if hasattr(parent, joined):
                _join(parent, joined)
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, _light(child, kind, native=native))
    if native:
        _hand_over(model, torch.float32 if kind == "float32" else torch.bfloat16)
    if model.config.heads == "shared":
        model.code_head = _code_head(model)


def is_light(model: AnyModal) -> bool:
    """Say whether a model's weights were rounded for sampling."""
    return any(isinstance(module, BFloat16Linear | Int8Linear) for module in model.modules())


def has_bfloat16() -> bool:
    """Say whether this processor has instructions for bfloat16; without them torch is slower than in float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _widen(model: AnyModal, besides: set[nn.Linear]) -> None:
    """Make everything float32 besides these layers."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False) if module not in besides else ():
            parameter.data = parameter.data.float()


def _hand_over(model: AnyModal, cache_dtype: torch.dtype) -> None:
    """Give the native kernel what is no product of blocks and heads."""
    for module in list(model.transformer.modules()):
        if isinstance(module, Attention):
            module.attend = _attend
        for name, child in list(module.named_children()):
            if isinstance(child, nn.RMSNorm):
                setattr(module, name, NativeRMSNorm(child))
    tied = model.embedding.weight.data_ptr()
    weights = [module.weight for module in model.modules() if isinstance(module, LightLinear)]
    move_to_large_pages([weight for weight in weights if weight.data_ptr() != tied])
    model.transformer.stack = NativeBlocks(model.transformer, cache_dtype)
    if model.config.heads == "decoupled":
        for number, linear in enumerate(model.image_aligner):
            if isinstance(linear, nn.Linear):
                model.image_aligner[number] = Float32Linear(linear.weight, linear.bias)
        model.image_aligner[1] = model.image_head[1] = NativeGELU()


def _code_head(model: AnyModal) -> Callable[[nn.Module, Tensor], Tensor] | None:
    """Return what scores the image codes with the head's rows, where that is faster than the model itself."""
    if not isinstance(model.head, Float32Linear):
        codes = model.head.select(model.image_ids)  # type: ignore[operator]
        return lambda head, hidden: codes(hidden)  # no module of the model's own: it shares the head's weights
    return None if model.code_span is None else partial(_product_of_part, part=model.code_span)


def _product_of_part(head: nn.Module, hidden: Tensor, part: slice) -> Tensor:
    return _product(hidden, cast(Tensor, head.weight)[part])


def _join(module: nn.Module, joined: str) -> None:
    """Put layers of a module one below the other as one layer, and drop them."""
    parts = [module.get_submodule(name) for name in JOINED[joined]]
    weight, bias = (_stacked([getattr(part, name) for part in parts]) for name in ("weight", "bias"))
    assert weight is not None, "linear layers have weights"
    whole = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype)
    whole.weight = _fixed(weight)
    whole.bias = None if bias is None else _fixed(bias)  # type: ignore[assignment]
    setattr(module, joined, whole)
    for name in JOINED[joined]:
        delattr(module, name)


def _stacked(values: Sequence[Tensor | None]) -> Tensor | None:
    given = [each.detach() for each in values if each is not None]
    return torch.cat(given) if given else None


def _light(linear: nn.Linear, kind: Kind, *, native: bool) -> LightLinear:
    if kind == "int8":
        return Int8Linear.of(linear, native=native)
    if kind == "bfloat16":
        return BFloat16Linear(linear.weight, linear.bias, native=native)
    return Float32Linear(linear.weight, linear.bias)


def _attend(q: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> Tensor | None:
    if q.shape[1] > NATIVE_QUERIES or not (_suits_kernel(q) and _suits_kernel(keys, dtypes=KEPT)):
        return None
    return native_attention(q, keys, values, places)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply with float32 weights as they are now; torch does where rows are many, or the kernel cannot."""
    if _count(x) > NATIVE_ROWS or not _suits_kernel(x, weight):
        return F.linear(x, weight, bias)
    y = native_linear(x, weight)
    return y if bias is None else y + bias


def _suits_kernel(*tensors: Tensor, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> bool:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return all(tensor.is_cpu and tensor.dtype in dtypes for tensor in tensors)


def _kept(values: Tensor) -> nn.Parameter:
    return values if isinstance(values, nn.Parameter) and values.dtype is torch.float32 else _fixed(values.float())


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().contiguous(), requires_grad=False)


def _count(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


def _lacks_bfloat16() -> bool:
    """Tell whether torch computes bfloat16 products without instructions for them, several times slower."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def _widened(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply with weights of which a part at a time is made `dtype`."""
    size = max(1, WIDENED // weight.shape[1])
    x = x.to(dtype)
    return torch.cat([F.linear(x, part.to(dtype)) for part in weight.split(size)], dim=-1).float()


def _pick(values: Tensor, rows: Int[Tensor, " k"]) -> Tensor:
    """Return rows; as a view, where they follow each other."""
    first = int(rows[0])
    if torch.equal(rows, torch.arange(first, first + len(rows), device=rows.device)):
        return values[first : first + len(rows)]
    return values[rows]
