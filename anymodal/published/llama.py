"""The backbone that Chameleon, Emu3 and Janus share: Llama's names and config."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from anymodal.model.config import TransformerConfig
from anymodal.published.names import Rule

DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
}
"""What transformers' LlamaConfig means by a key that a config.json leaves out."""

QkNorm = Literal["none", "layer", "rms"]


def backbone_rules(prefix: str, *, tied: bool, head: str = "lm_head.weight") -> list[Rule]:
    """Return the names of backbone, text embedding and text head; theirs begin with `prefix`, save for the head's."""
    layer, block = f"{prefix}layers.*.", "transformer.blocks.*."
    rules = [
        Rule("embedding.weight", f"{prefix}embed_tokens.weight"),
        Rule("head.weight", f"{prefix}embed_tokens.weight" if tied else head),
        Rule("transformer.norm.weight", f"{prefix}norm.weight"),
        Rule(f"{block}attention_norm.weight", f"{layer}input_layernorm.weight"),
        Rule(f"{block}feed_forward_norm.weight", f"{layer}post_attention_layernorm.weight"),
    ]
    return [
        *rules,
        Rule(f"{block}attention.*", f"{layer}self_attn.*"),
        Rule(f"{block}feed_forward.*", f"{layer}mlp.*"),
    ]


def read_transformer(
    config: Mapping[str, Any], *, qk_norm: QkNorm = "none", swin_norm: bool = False, defaults: Mapping[str, Any] = {}
) -> TransformerConfig:
    """Read the shape of a backbone from a config.json in Llama's words; `defaults` are those of its own class.

    Raises:
        ValueError: it asks for what this backbone cannot do, or its heads do not divide.
    """
    get = _Getter(config, {**DEFAULTS, **defaults})
    if get("hidden_act") not in ("silu", "swish"):
        raise ValueError(
            f"the backbone's hidden_act must be silu, got {get('hidden_act')!r}; this model is another one."
        )
    dim, heads = int(get("hidden_size")), int(get("num_attention_heads"))
    head_dim = config.get("head_dim")
    if head_dim is None and dim % heads:
        raise ValueError(f"num_attention_heads must divide hidden_size, got {heads} and {dim}; the config is broken.")
    return TransformerConfig(
        dim=dim,
        depth=int(get("num_hidden_layers")),
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or get.fallback("num_key_value_heads", heads)),
        head_dim=int(head_dim or dim // heads),
        hidden_dim=int(get("intermediate_size")),
        norm_eps=float(get("rms_norm_eps")),
        norm_position="swin" if swin_norm else "pre",
        qk_norm=qk_norm,
        rope_theta=_rope_theta(config, float(get.fallback("rope_theta", 10000.0))),
        max_seq_len=int(get("max_position_embeddings")),
        attention_bias=bool(get("attention_bias")),
        mlp_bias=bool(get("mlp_bias")),
        attention_dropout=float(get("attention_dropout")),
    )


def write_transformer(config: TransformerConfig, *, vocab_size: int) -> dict[str, Any]:
    """Return a backbone's shape in Llama's words."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "attention_dropout": config.attention_dropout,
    }


def refuse_unlike(config: TransformerConfig, layout: str, **wanted: object) -> None:
    """Refuse a backbone that a layout cannot express.

    Raises:
        ValueError: a field of the config is not what the layout has; both are named.
    """
    for name, value in wanted.items():
        options: Sequence[object] = value if isinstance(value, tuple) else (value,)
        if getattr(config, name) not in options:
            raise ValueError(
                f"the layout {layout!r} has {name} {' or '.join(map(repr, options))}, this model has "
                f"{getattr(config, name)!r}; save it without a layout."
            )


class _Getter:
    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.config, self.defaults = config, defaults

    def __call__(self, name: str) -> Any:
        value = self.config.get(name)
        return self.defaults[name] if value is None else value

    def fallback(self, name: str, otherwise: Any) -> Any:
        return self.defaults.get(name, otherwise)


def _rope_theta(config: Mapping[str, Any], default: float) -> float:
    """Read the base of the rotary angles, where older and newer configs keep it."""
    rope = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rotary positions must be of type 'default', got {kind!r}, which is not known here.")
    return float(rope.get("rope_theta") or config.get("rope_theta") or default)
