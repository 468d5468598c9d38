"""SigLIP vision towers (arXiv:2303.15343) in the layout of transformers, as the understanding path of a model."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from anymodal.model.config import UnderstandingConfig
from anymodal.model.understanding import UnderstandingEncoder
from anymodal.published.layout import PublishedFolder
from anymodal.published.names import Names, Rule
from anymodal.tokens.picture_config import PictureFit
from anymodal.tokens.tensors import TensorFiles

KINDS = ("siglip", "siglip_vision_model")
DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
"""What transformers' SiglipVisionConfig means by a key that a config.json leaves out."""

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
FIT = PictureFit(kind="area")  # resized to the square, whatever the shape


def names(prefix: str) -> Names:
    """Return the names of a tower's tensors; its pooling head and a text tower beside it are not read."""
    layer, block = f"{prefix}encoder.layers.*.", "blocks.*."
    rules = [
        Rule("patch_embedding.*", f"{prefix}embeddings.patch_embedding.*"),
        Rule("position_embedding", f"{prefix}embeddings.position_embedding.weight"),
        Rule("norm.*", f"{prefix}post_layernorm.*"),
        Rule(f"{block}norm_1.*", f"{layer}layer_norm1.*"),
        Rule(f"{block}norm_2.*", f"{layer}layer_norm2.*"),
        Rule(f"{block}fc_1.*", f"{layer}mlp.fc1.*"),
        Rule(f"{block}fc_2.*", f"{layer}mlp.fc2.*"),
        *(
            Rule(f"{block}{part}.*", f"{layer}self_attn.{part}.*")
            for part in ("q_proj", "k_proj", "v_proj", "out_proj")
        ),
    ]
    return Names(rules, ignored=(f"{prefix}head.*", "text_model.*", "logit_scale", "logit_bias"))


def read_config(config: Mapping[str, Any], *, merge: int = 1) -> UnderstandingConfig:
    """Read the shape of a tower; `merge` x `merge` of its features become one token.

    Raises:
        ValueError: another kind of model, or what no SigLIP has.
    """
    if config.get("model_type") not in KINDS:
        raise ValueError(
            f"a vision tower must be one of {', '.join(KINDS)}, got model_type {config.get('model_type')!r}."
        )
    vision = {**DEFAULTS, **(config.get("vision_config") or config)}
    if vision["hidden_act"] not in ("gelu", "gelu_pytorch_tanh"):
        raise ValueError(
            f"a vision tower's hidden_act must be gelu_pytorch_tanh or gelu, got {vision['hidden_act']!r}."
        )
    return UnderstandingConfig(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        dim=vision["hidden_size"],
        depth=vision["num_hidden_layers"],
        num_heads=vision["num_attention_heads"],
        hidden_dim=vision["intermediate_size"],
        norm_eps=vision["layer_norm_eps"],
        merge=merge,
        fit=FIT,
        activation="gelu" if vision["hidden_act"] == "gelu" else "gelu_tanh",
    )


def read_tower(folder: PublishedFolder, encoder: UnderstandingEncoder) -> None:
    """Fill an encoder of `read_config`'s shape with a tower's weights; its connector stays as it starts.

    Raises:
        ValueError: a tensor is missing or of another shape.
    """
    tensors: Mapping[str, Tensor] = TensorFiles.of_folder(folder.path, allow_pickle=folder.allow_pickle)
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in tensors) else ""  # by release
    connector = encoder.connector
    del encoder.connector
    try:
        names(prefix).read(tensors, encoder, str(folder.path))
    finally:
        encoder.connector = connector
    encoder.float()
