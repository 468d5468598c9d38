import copy
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anymodal.decoding import weights
from anymodal.decoding.engine import Engine
from anymodal.decoding.native import load_kernel, native_attention
from anymodal.decoding.weights import (
    BFloat16Linear,
    Float32Linear,
    Int8Linear,
    Kind,
    LightLinear,
    NativeGELU,
    NativeRMSNorm,
    is_light,
    lighten,
)
from anymodal.model.cache import KVCache
from anymodal.model.unified import AnyModal

ROWS = (1, 2, 3, 8, 9, 16, 17, 33, 65)
SHAPES = [(32, 64), (9, 7), (23, 48), (5, 100)]
ROUNDED = 2**-7  # of the sum of absolute products, where torch rounds rows and results to bfloat16
Heads = Literal["shared", "decoupled"]


def linear(out: int, width: int, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, out, bias=bias)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("out", "width"), SHAPES)
def test_bfloat16_rounds_weights(out: int, width: int, bias: bool, native: bool) -> None:
    source = linear(out, width, bias=bias)
    light = BFloat16Linear(source.weight, source.bias, native=native)
    assert torch.equal(light.weight, source.weight.bfloat16())
    assert list(light.state_dict()) == list(source.state_dict())
    assert not any(parameter.requires_grad for parameter in light.parameters())
    for rows in ROWS:
        x = torch.randn(rows, width)
        y = light(x)
        assert (y.dtype, y.shape) == (torch.float32, (rows, out))
        size = exact(x.abs(), light.weight.abs(), None)
        bound = (8e-6 if native and rows <= 64 else ROUNDED) * size + 1e-6
        assert bool(((y - exact(x, light.weight, light.bias)).abs() <= bound).all())


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("out", "width"), SHAPES)
def test_int8_errs_by_half_a_step_a_weight(out: int, width: int, bias: bool, native: bool) -> None:
    source = linear(out, width, bias=bias)
    light = Int8Linear.of(source, native=native)
    assert (light.weight.dtype, light.scale.dtype) == (torch.int8, torch.float32)
    assert bool((light.weight.abs().amax(1) == 127).all()), "the largest weight of an output takes the last step"
    for rows in ROWS:
        x = torch.randn(2, rows, width)
        y = light(x)
        assert (y.dtype, y.shape) == (torch.float32, (2, rows, out))
        half = exact(x.abs(), (light.scale / 2)[:, None].expand(-1, width), None)
        size = exact(x.abs(), source.weight.abs(), None)
        bound = 1.001 * half + (1e-6 if native and 2 * rows <= 64 else ROUNDED) * size + 1e-6
        if native and 2 * rows <= 64:  # the kernel rounds rows to 2 * 32639 steps
            bound += 0.51 / 32639 * x.double().abs().amax(-1, keepdim=True) * source.weight.double().abs().sum(1)
        assert bool(((y - exact(x, source.weight, source.bias)).abs() <= bound).all())


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("out", "width"), SHAPES)
def test_float32_keeps_weights(out: int, width: int) -> None:
    source = linear(out, width)
    light = Float32Linear(source.weight, source.bias)
    assert light.weight.data_ptr() == source.weight.data_ptr()
    for rows in ROWS:
        x = torch.randn(rows, width)
        torch.testing.assert_close(light(x), source(x))


def test_int8_of_zeros_is_zero_and_of_no_number_an_error() -> None:
    source = linear(3, 16, bias=False)
    with torch.no_grad():
        source.weight[1] = 0
    assert bool((Int8Linear.of(source)(torch.randn(2, 16))[:, 1] == 0).all())
    with torch.no_grad():
        source.weight[2, 3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        Int8Linear.of(source)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("native", [False, True])
def test_selected_outputs_are_the_same_and_share_memory(native: bool) -> None:
    source = linear(24, 32)
    x = torch.randn(3, 32)
    for light in (BFloat16Linear(source.weight, source.bias, native=native), Int8Linear.of(source, native=native)):
        for rows in (torch.arange(7, 19), torch.tensor([4, 1, 20])):
            torch.testing.assert_close(light.select(rows)(x), light(x)[:, rows])
        behind = light.select(torch.arange(7, 19))
        assert behind.weight.data_ptr() == light.weight[7:].data_ptr()


def light_model(toy: Any, kind: Kind, *, native: bool = False, **changes: Any) -> AnyModal:
    model: AnyModal = toy.parts(**changes).model
    lighten(model, kind, native=native)
    return model


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("heads", ["shared", "decoupled"])
@pytest.mark.parametrize(("kind", "bound"), [("bfloat16", 0.01), ("int8", 0.02), ("float32", 1e-5)])
def test_logits_of_a_light_model_are_near(toy: Any, kind: Kind, bound: float, heads: Heads, native: bool) -> None:
    if kind == "float32" and not native:
        with pytest.raises(ValueError, match="ask for the native kernel"):
            light_model(toy, kind)
        return
    model = toy.parts(heads=heads).model.eval().requires_grad_(False)
    light = light_model(toy, kind, native=native, heads=heads).eval()
    ids = torch.arange(40).view(2, 20)
    before, out = model(ids), light(ids)
    for near, true in ((out.logits, before.logits), (out.image_logits, before.image_logits)):
        assert near.dtype == torch.float32
        assert near.requires_grad == (kind == "float32")
        assert float(((near - true).norm() / true.norm()).detach()) < bound
    linears = {name for name, module in light.named_modules() if type(module) is nn.Linear}
    assert all(name.startswith(("understanding.", "image_aligner.")) for name in linears)


@torch.inference_mode()
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("bucket", [0, 64])
def test_attention_of_a_native_model_is_that_of_a_whole_pass(
    toy: Any, bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is where the kernel does not pass all blocks at once."""
    model, light = toy.parts().model.eval().requires_grad_(False), light_model(toy, "float32", native=True).eval()
    light.transformer.stack = None
    counts = list[int]()

    def counted(q: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> Tensor:
        counts.append(q.shape[1])
        return native_attention(q, keys, values, places)

    monkeypatch.setattr(weights, "native_attention", counted)
    ids = torch.arange(180).view(2, 90) % 250
    whole, cache = model(ids).hidden, KVCache(light.config.transformer, num_rows=2, capacity=200, bucket=bucket)
    for begin, count in ((0, 40), (40, 1), (41, 8), (49, 9)):
        part = ids[:, begin : begin + count]
        hidden = light.append(light.embed(part), part, cache.reserve(count))
        cache.keep(count)
        torch.testing.assert_close(hidden, whole[:, begin : begin + count], atol=2e-5, rtol=1e-5)
    assert counts == [n for n in (1, 8) for _ in range(light.config.transformer.depth)]


@pytest.mark.usefixtures("compiler")
def test_norms_of_a_native_model_keep_their_weights(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy.parts().model
    names, weight = list(model.transformer.state_dict()), model.transformer.norm.weight
    lighten(model, "bfloat16", native=True)
    norms = [module for module in model.transformer.modules() if isinstance(module, nn.RMSNorm)]
    assert norms
    assert all(type(norm) is NativeRMSNorm for norm in norms)
    assert model.transformer.norm.weight.data_ptr() == weight.data_ptr()
    assert {name for name in names if "norm" in name} <= set(model.transformer.state_dict())
    x = torch.randn(2, 3, 32)
    torch.testing.assert_close(norms[0](x), F.rms_norm(x, (32,), norms[0].weight, norms[0].eps))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(norms[0](x), F.rms_norm(x, (32,), norms[0].weight, norms[0].eps))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_codes_are_read_in_float32(toy: Any, kind: Kind) -> None:
    model = toy.parts(heads="decoupled").model.eval().requires_grad_(False)
    light = light_model(toy, kind, native=True, heads="decoupled").eval()
    assert type(light.image_head[1]) is type(light.image_aligner[1]) is NativeGELU
    codes = light.image_ids[torch.arange(len(light.image_ids)).repeat(5)][None]
    for ids in (codes[:, :3], codes):
        torch.testing.assert_close(light.embed(ids), model.embed(ids), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_tied_head_gets_its_own_weights(toy: Any, kind: Kind) -> None:
    light = light_model(toy, kind, tie_embeddings=True)
    assert light.embedding.weight.dtype == torch.float32
    assert isinstance(light.head, LightLinear)
    assert light.head.weight.data_ptr() != light.embedding.weight.data_ptr()
    x = torch.randn(2, 32)
    true = F.linear(x, light.embedding.weight)
    assert float((light.text_logits(x) - true).norm() / true.norm()) < 0.02


@pytest.mark.usefixtures("compiler")
def test_tied_head_stays_tied_in_float32(toy: Any) -> None:
    light = light_model(toy, "float32", native=True, tie_embeddings=True)
    assert light.head.weight.data_ptr() == light.embedding.weight.data_ptr()


def drawn(model: AnyModal, kernels: list[int] | None = None) -> Tensor:
    """Draw greedily, and count the passes of the kernel."""
    begin = torch.full((1, 3), model.vocabulary.special("boi"))
    cache = KVCache(model.config.transformer, num_rows=1, capacity=9, dtype=model.embedding.weight.dtype)
    assert Engine(model).idle
    with torch.inference_mode():
        if kernels is not None and model.transformer.stack is not None:
            kernels.append(int(model.transformer.stack(torch.randn(1, 1, 32), cache.reserve(1)) is not None))
        return model.image_logits(model.append(model.embed(begin), begin, cache.reserve(3)))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("heads", ["shared", "decoupled"])
def test_float32_model_is_what_it_was_and_is_read_as_it_is_now(toy: Any, heads: Heads) -> None:
    plain, light = toy.parts(heads=heads).model.eval(), toy.parts(heads=heads).model.eval()
    parameters = dict(light.named_parameters())
    lighten(light, "float32", native=True)
    assert all(parameters[name] is parameter for name, parameter in light.named_parameters())
    assert list(light.state_dict()) == list(plain.state_dict())
    assert all(parameter.requires_grad for parameter in light.parameters())
    assert not is_light(light)
    for model in (plain, light):  # trained: by torch, with the same gradients
        out, optimizer = model(torch.arange(9)[None]), torch.optim.SGD(model.parameters(), lr=0.1)
        (out.logits.square().mean() + out.image_logits.square().mean()).backward()
        optimizer.step()
    near(drawn(light, kernels := list[int]()), drawn(plain))
    for model in (light, plain):  # replaced, and written over
        model.load_state_dict({name: value * 1.5 for name, value in plain.state_dict().items()}, assign=model is light)
    near(drawn(light, kernels), drawn(plain))
    copied = copy.deepcopy(light)
    assert copied.transformer.stack is None
    near(drawn(copied), drawn(plain))
    assert kernels == [1, 1]
    light.transformer.blocks[0].attention.o_proj.register_forward_hook(lambda module, x, y: 2 * y)
    plain.transformer.blocks[0].attention.o_proj.register_forward_hook(lambda module, x, y: 2 * y)
    near(drawn(light, kernels), drawn(plain))
    for model in (plain, light):
        wrapped = model.transformer.blocks[1].feed_forward
        wrapped.down_proj = nn.Sequential(wrapped.down_proj, nn.Tanh())
        model.double()
    torch.testing.assert_close(drawn(light, kernels), drawn(plain))
    assert kernels == [1, 1, 0, 0]


def near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_bfloat16_model_keeps_its_weights_and_computes_in_float32(toy: Any) -> None:
    model = toy.parts().model.bfloat16()
    before = model.transformer.blocks[0].attention.o_proj.weight
    queries = model.transformer.blocks[0].attention.q_proj.weight.detach()
    lighten(model, "bfloat16")
    assert model.transformer.blocks[0].attention.o_proj.weight.data_ptr() == before.data_ptr()
    assert torch.equal(model.transformer.blocks[0].attention.q_proj.weight, queries)
    assert model.transformer.norm.weight.dtype == model.embedding.weight.dtype == torch.float32
    assert model(torch.arange(20)[None]).logits.dtype == torch.float32


def test_light_model_is_not_made_lighter(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    light = light_model(toy, "bfloat16")
    with pytest.raises(ValueError, match="light already"):
        lighten(light, "int8")
    load_kernel.cache_clear()
    monkeypatch.setenv("PATH", "")
    model = toy.parts().model
    with pytest.raises(ValueError, match="needs a C compiler"):
        lighten(model, "int8", native=True)
    assert type(model.head) is nn.Linear, "nothing has changed"
