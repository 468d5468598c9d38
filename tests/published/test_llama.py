from typing import Any

import pytest

from anymodal.model.config import TransformerConfig
from anymodal.published.llama import backbone_rules, read_transformer, refuse_unlike, write_transformer
from anymodal.published.names import Names

TINY: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}


def test_what_is_left_out_means_what_transformers_means() -> None:
    from transformers import LlamaConfig

    theirs = LlamaConfig(**TINY)
    config = read_transformer(TINY)
    assert config.norm_eps == theirs.rms_norm_eps
    assert config.max_seq_len == theirs.max_position_embeddings
    assert config.rope_theta == dict(theirs.rope_parameters or {})["rope_theta"]
    assert (config.num_kv_heads, config.head_dim) == (theirs.num_key_value_heads, theirs.head_dim)
    assert read_transformer({}).hidden_dim == LlamaConfig().intermediate_size


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 77.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
        {"rope_theta": 77.0, "rope_scaling": None},
        {"rope_scaling": {"type": "default"}, "rope_theta": 77.0},
    ],
)
def test_the_base_of_rotary_angles_is_read_where_it_stands(rope: dict[str, object]) -> None:
    assert read_transformer({**TINY, **rope}).rope_theta == 77.0


def test_shapes_go_out_and_come_back() -> None:
    config = TransformerConfig(
        dim=32, depth=2, num_heads=4, num_kv_heads=2, head_dim=20, hidden_dim=48, norm_eps=1e-5, rope_theta=9.0,
        max_seq_len=64, attention_bias=True,
    )  # fmt: skip
    assert read_transformer(write_transformer(config, vocab_size=100)) == config


def test_what_it_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match="hidden_act must be silu, got 'gelu'"):
        read_transformer({**TINY, "hidden_act": "gelu"})
    with pytest.raises(ValueError, match="num_attention_heads must divide hidden_size, got 5 and 32"):
        read_transformer({**TINY, "num_attention_heads": 5})
    with pytest.raises(ValueError, match="must be of type 'default', got 'yarn'"):
        read_transformer({**TINY, "rope_scaling": {"rope_type": "yarn"}})
    with pytest.raises(ValueError, match="the layout 'x' has qk_norm 'none' or 'rms', this model has 'layer'"):
        refuse_unlike(TransformerConfig(qk_norm="layer"), "x", qk_norm=("none", "rms"))


def test_names_of_layers() -> None:
    names = Names(backbone_rules("model.", tied=True))
    assert names.find("transformer.blocks.11.attention.q_proj.bias")[0] == "model.layers.11.self_attn.q_proj.bias"
    assert names.find("transformer.blocks.0.feed_forward.up_proj.weight")[0] == "model.layers.0.mlp.up_proj.weight"
    assert names.find("head.weight")[0] == names.find("embedding.weight")[0] == "model.embed_tokens.weight"
    with pytest.raises(ValueError, match="no tensor for our place_embedding.weight"):
        names.find("place_embedding.weight")
