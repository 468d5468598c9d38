"""The transformer against independent implementations, and against itself with and without a cache."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anymodal.model import transformer
from anymodal.model.cache import CacheStep, KVCache
from anymodal.model.config import TransformerConfig
from anymodal.model.elementwise import rotary_table, rotate
from anymodal.model.transformer import Segments, Transformer

TINY: dict[str, Any] = {"dim": 32, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "hidden_dim": 48}
NAMES = {
    "self_attn": "attention",
    "mlp": "feed_forward",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feed_forward_norm",
    "model.layers": "blocks",
    "model.norm": "norm",
}


def tiny(seed: int = 0, **changes: Any) -> Transformer:
    torch.manual_seed(seed)
    transformer = Transformer(TransformerConfig(**{**TINY, **changes})).double().eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return transformer


def positions_of(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1]).expand(x.shape[:2])


def test_equals_llama_of_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    llama: Any = LlamaForCausalLM(config)
    llama.eval()
    for parameter in llama.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = Transformer(TransformerConfig(**TINY, norm_eps=1e-5, rope_theta=500.0)).eval()
    state = {}
    for name, tensor in llama.state_dict().items():
        for theirs, own in NAMES.items():
            name = name.replace(theirs, own)
        state[name] = tensor
    head, embedding = state.pop("lm_head.weight"), state.pop("model.embed_tokens.weight")
    ours.load_state_dict(state)
    ids = torch.randint(0, 64, (2, 17))
    with torch.no_grad():
        hidden = ours(F.embedding(ids, embedding), positions_of(ids))
        torch.testing.assert_close(F.linear(hidden, head), llama(ids).logits, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("swin", [False, True])
@pytest.mark.parametrize("qk_norm", ["layer", "rms"])
def test_equals_a_loop_over_heads_and_tokens(swin: bool, qk_norm: str) -> None:
    """Chameleon's blocks (arXiv:2405.09818, section 2.2): norms of queries and keys a head, swin-norm."""
    model = tiny(depth=1, qk_norm=qk_norm, norm_position="swin" if swin else "pre", attention_bias=True, mlp_bias=True)
    block: Any = model.blocks[0]
    x = torch.randn(1, 5, 32, dtype=torch.float64)

    def norm(vector: Tensor, weight: Tensor) -> Tensor:
        return vector / (vector.square().mean() + 1e-6).sqrt() * weight

    def head_norm(vector: Tensor, module: Any, head: int) -> Tensor:
        if qk_norm == "rms":
            return norm(vector, module.weight)
        centred = vector - vector.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * module.weight[head] + module.bias[head]

    def turn(vector: Tensor, position: int) -> Tensor:
        turned = vector.clone()
        for i in range(4):
            angle = torch.tensor(position * 10000.0 ** (-2 * i / 8), dtype=torch.float64)
            turned[i] = vector[i] * angle.cos() - vector[i + 4] * angle.sin()
            turned[i + 4] = vector[i + 4] * angle.cos() + vector[i] * angle.sin()
        return turned

    def attend(tokens: list[Tensor]) -> list[Tensor]:
        attention = block.attention
        mixed = []
        for n, token in enumerate(tokens):
            heads = []
            for head in range(4):
                kv = head // 2
                query = attention.q_proj(token)[head * 8 : head * 8 + 8]
                query = turn(head_norm(query, attention.q_norm, head), n)
                keys = [attention.k_proj(t)[kv * 8 : kv * 8 + 8] for t in tokens[: n + 1]]
                keys = [turn(head_norm(key, attention.k_norm, kv), m) for m, key in enumerate(keys)]
                values = [attention.v_proj(t)[kv * 8 : kv * 8 + 8] for t in tokens[: n + 1]]
                weights = torch.stack([query @ key / 8**0.5 for key in keys]).softmax(0)
                heads.append(sum(w * value for w, value in zip(weights, values, strict=True)))
            mixed.append(attention.o_proj(torch.cat(heads)))
        return mixed

    def feed(token: Tensor) -> Tensor:
        part = block.feed_forward
        return part.down_proj(F.silu(part.gate_proj(token)) * part.up_proj(token))

    tokens = list(x[0])
    first, second = block.attention_norm.weight, block.feed_forward_norm.weight
    if swin:
        tokens = [t + norm(a, first) for t, a in zip(tokens, attend(tokens), strict=True)]
        tokens = [t + norm(feed(t), second) for t in tokens]
    else:
        tokens = [t + a for t, a in zip(tokens, attend([norm(t, first) for t in tokens]), strict=True)]
        tokens = [t + feed(norm(t, second)) for t in tokens]
    expected = torch.stack([norm(t, model.norm.weight) for t in tokens])
    torch.testing.assert_close(model(x, positions_of(x))[0], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("qk_norm", ["none", "layer", "rms"])
def test_bfloat16_products_stay_near_those_of_float32(qk_norm: str) -> None:
    torch.manual_seed(1)
    model, x = Transformer(TransformerConfig(**{**TINY, "qk_norm": qk_norm})), torch.randn(2, 6, 32)
    plain = model(x, positions_of(x))
    with torch.autocast("cpu", torch.bfloat16):  # torch warns, and tests fail, where a norm mixes types
        rounded = model(x, positions_of(x))
    assert rounded.dtype is torch.float32
    assert 0 < float((rounded - plain).detach().abs().max()) < 0.05


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_by_products_is_attention(kv_heads: int) -> None:
    torch.manual_seed(2)
    q = torch.randn(3, 4, 7, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(3, kv_heads, 7, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    found = transformer._mixed_by_products(q, k, v, 0.0)
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(wanted)
    for mine, theirs in zip(*(torch.autograd.grad(each, (q, k, v), upstream) for each in (found, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs)
    dropped = transformer._mixed_by_products(q, k, v, 1.0)
    assert not dropped.any()


@pytest.mark.parametrize("short", [1, 2, 128])
def test_packed_documents_do_not_see_each_other(short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be they alone in a group with those of their length, or among others."""
    monkeypatch.setattr(transformer, "SHORT", short)
    model = tiny()
    documents = torch.tensor([[0, 0, 0, 1, 1, -1], [2, 2, 2, 2, 3, 4]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]])
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    assert len(Segments.of(documents).gather) == {1: 3, 2: 2, 128: 1}[short]
    packed = model(x, positions, Segments.of(documents))
    for number in range(5):
        inside = documents == number
        alone = model(x[inside][None], positions[inside][None])
        torch.testing.assert_close(packed[inside], alone[0], atol=1e-12, rtol=1e-12)
    moved = model(torch.where((documents == 0)[..., None], x + 1, x), positions, Segments.of(documents))
    others = documents > 0
    assert torch.equal(moved[others], packed[others])
    assert not torch.allclose(moved[documents == 0], packed[documents == 0])


def test_attention_of_a_sampler_is_asked_first() -> None:
    """It sees queries before they are transposed, and the cache up to its places; None leaves it to torch."""
    model = tiny()
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    whole = model(x, positions_of(x))
    asked = list[int]()

    def attend(q: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> Tensor | None:
        asked.append(q.shape[1])
        if q.shape[1] > 1:
            return None
        seen = torch.arange(keys.shape[2]) <= places[:, :, None, None]
        scores = torch.einsum("bngrk,bgmk->bngrm", q.unflatten(2, (2, 2)), keys) / 8**0.5
        shares = scores.masked_fill(~seen[:, :, None], -torch.inf).softmax(-1)
        return torch.einsum("bngrm,bgmk->bngrk", shares, values).flatten(2, 3)

    for block in model.blocks:
        block.attention.attend = attend  # type: ignore[union-attr]
    cache = KVCache(model.config, num_rows=2, capacity=8, dtype=torch.float64, bucket=8)
    for begin, count in ((0, 5), (5, 1)):
        part = slice(begin, begin + count)
        step = cache.reserve(count)
        torch.testing.assert_close(model(x[:, part], step.places, step), whole[:, part], atol=1e-12, rtol=1e-12)
        cache.keep(count)
    assert asked == [5, 5, 1, 1]


def test_all_blocks_of_a_sampler_are_asked_first() -> None:
    """They are asked where a cache is read at its own places; None leaves it to torch."""
    model, answers = tiny(), [None, torch.ones(2, 1, 32, dtype=torch.float64)]
    x = torch.randn(2, 1, 32, dtype=torch.float64)
    whole = model(x, positions_of(x))
    asked = list[CacheStep]()

    def stack(x: Tensor, step: CacheStep) -> Tensor | None:
        asked.append(step)
        return answers[len(asked) - 1]

    model.stack = stack
    step = KVCache(model.config, num_rows=2, capacity=8, dtype=torch.float64).reserve(1)
    torch.testing.assert_close(model(x, step.places, step), whole)
    assert model(x, step.places, step) is answers[1]
    assert len(asked) == 2
    torch.testing.assert_close(model(x, step.places + 0, step), whole)
    torch.testing.assert_close(model(x, positions_of(x)), whole)
    assert asked == [step, step]


def test_rotary_keeps_norms_and_tells_distances() -> None:
    table = rotary_table(torch.tensor([[0, 3, 5, 8]]), 8, 100.0)
    assert table.shape == (2, 1, 4, 4)
    assert table.dtype == torch.float64
    q, k = torch.randn(2, 8, dtype=torch.float64)
    same = torch.stack([q, k, q, k])[None, :, None]
    angles = table[:, :, :, None]
    turned = rotate(same, angles)[0, :, 0]
    torch.testing.assert_close(turned.norm(dim=-1), same[0, :, 0].norm(dim=-1))
    torch.testing.assert_close(turned[0] @ turned[1], turned[2] @ turned[3])  # both 3 apart
    assert rotate(same.bfloat16(), angles).dtype == torch.bfloat16


def test_geometry_is_checked() -> None:
    with pytest.raises(ValueError, match="num_kv_heads must divide num_heads, got 3 and 4"):
        TransformerConfig(num_heads=4, num_kv_heads=3)
    with pytest.raises(ValueError, match="head_dim must be even"):
        TransformerConfig(head_dim=7)
