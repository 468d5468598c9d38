"""Janus and Janus-Pro in the layout of their own code (`model_type` "multi_modality"): read, and written again."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anymodal.model.config import AnyModalConfig, UnderstandingConfig
from anymodal.model.folder import ModelFolder, Origin
from anymodal.published.janus import DRAW_FIT, assemble, check_expressible, look_fit
from anymodal.published.layout import Layout, PublishedFolder, no_memory, write_side_files
from anymodal.published.llama import backbone_rules, read_transformer
from anymodal.published.llamagen import llamagen_names, read_llamagen_config
from anymodal.published.names import Names, Rule
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.tensors import TensorFiles
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.weights import save_weights, write_json

NAME = "janus-original"
HEAD_WIDTHS = {"siglip_large_patch16_384": 64, "siglip_so400m_patch14_384": 72}
"""Width of a head of the vision towers that the original names; their other sizes stand in the tensors."""

TEXT_VOCAB, VISION = 102400, "vision_model.vision_tower."
PARTS = ("q_proj", "k_proj", "v_proj")
UNUSED = "vision_model.vision_tower.attn_pool."


def names(config: AnyModalConfig) -> Names:
    """Return the names of the model's tensors, once `apart` has parted the fused projections."""
    assert config.understanding is not None, "Janus has an understanding path"
    ours, block = "understanding.", "understanding.blocks.*."
    layer = f"{VISION}blocks.*."
    rules = [
        *backbone_rules("language_model.model.", tied=False, head="language_model.lm_head.weight"),
        Rule("image_embedding.weight", "gen_embed.weight"),
        Rule("image_aligner.*", "gen_aligner.layers.*"),
        Rule("image_head.0.*", "gen_head.output_mlp_projector.*"),
        Rule("image_head.2.*", "gen_head.vision_head.*"),
        Rule(f"{ours}connector.*", "aligner.layers.*"),
        Rule(f"{ours}patch_embedding.*", f"{VISION}patch_embed.proj.*"),
        Rule(f"{ours}position_embedding", f"{VISION}pos_embed", lambda t: t.squeeze(0), lambda t: t[None]),
        Rule(f"{ours}norm.*", f"{VISION}norm.*"),
        Rule(f"{block}norm_1.*", f"{layer}norm1.*"),
        Rule(f"{block}norm_2.*", f"{layer}norm2.*"),
        Rule(f"{block}out_proj.*", f"{layer}attn.proj.*"),
        Rule(f"{block}fc_1.*", f"{layer}mlp.fc1.*"),
        Rule(f"{block}fc_2.*", f"{layer}mlp.fc2.*"),
        *(Rule(f"{block}{part}.*", f"{layer}attn.{part}.*") for part in PARTS),
    ]
    return Names(rules, ignored=("gen_vision_model.*", f"{UNUSED}*"))


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Part fused query-key-value projections; the parts are views."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name:
            found |= {name.replace("qkv", part): piece for part, piece in zip(PARTS, tensor.chunk(3), strict=True)}
        else:
            found[name] = tensor
    return found


def fused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join what `apart` parted."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attn.q_proj." in name:
            pieces = [tensors[name.replace("q_proj", part)] for part in PARTS]
            found[name.replace("q_proj", "qkv")] = torch.cat(pieces)
        elif not any(f".attn.{part}." in name for part in PARTS):
            found[name] = tensor
    return found


def read_config(config: Mapping[str, Any], images: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> AnyModalConfig:
    """Read the shape of the model from their config.json and, where that names a tower only, from its tensors.

    Raises:
        ValueError: an unknown kind of part, or parts that do not fit each other.
    """
    params = {key: dict((config.get(key) or {}).get("params") or {}) for key in config if key.endswith("_config")}
    for part in ("aligner_config", "gen_aligner_config"):
        kind = params.get(part, {}).get("projector_type", "mlp_gelu")
        if kind != "mlp_gelu":
            raise ValueError(f"{part} must be of projector_type 'mlp_gelu', got {kind!r}, which no Janus has.")
    vision = params.get("vision_config", {})
    patches, first = tensors.get(f"{VISION}patch_embed.proj.weight"), tensors.get(f"{VISION}blocks.0.mlp.fc1.weight")
    if patches is None or first is None:
        raise ValueError("the vision tower's patch_embed and blocks are missing; copy or download the folder again.")
    dim, tower = patches.shape[0], str(vision.get("model_name", "siglip_large_patch16_384"))
    head_dim = int(vision.get("head_dim", HEAD_WIDTHS.get(tower, 64)))
    depth = len({name.split(".")[3] for name in tensors if name.startswith(f"{VISION}blocks.")})
    understanding = UnderstandingConfig(
        image_size=int(vision.get("image_size", 384)),
        patch_size=patches.shape[-1],
        dim=dim,
        depth=depth,
        num_heads=dim // head_dim,
        hidden_dim=first.shape[0],
        connector_depth=int(params.get("aligner_config", {}).get("depth", 2)),
        activation="gelu",
        fit=look_fit(images),
    )
    head = tensors["gen_head.output_mlp_projector.weight"]
    return AnyModalConfig(
        transformer=read_transformer(config.get("language_config", {}), defaults={"max_position_embeddings": 16384}),
        understanding=understanding,
        heads="decoupled",
        image_embedding_dim=tensors["gen_embed.weight"].shape[1],
        image_head_dim=head.shape[0],
    )


def load(folder: PublishedFolder) -> ModelFolder:
    """Read a folder of the original code.

    Raises:
        ValueError: a file is missing, a pickle is not allowed, or the parts do not fit each other.
    """
    stem = "model" if (folder.path / "model.safetensors.index.json").is_file() else _stem(folder.path)
    tensors = apart(TensorFiles.of_folder(folder.path, stem, allow_pickle=folder.allow_pickle))
    lacking = [name for name in ("gen_embed.weight", "gen_head.output_mlp_projector.weight") if name not in tensors]
    if lacking:
        raise ValueError(f"{folder.path} lacks {', '.join(lacking)}; copy or download it again.")
    config = read_config(folder.config, folder.image_processor(), tensors)
    params = dict((folder.config.get("gen_vision_config") or {}).get("params") or {})
    image_config = replace(read_llamagen_config(_llamagen_arguments(params)), pictures=DRAW_FIT)
    with no_memory():
        image = ImageTokenizer(image_config)
    inside = {name: name.removeprefix("gen_vision_model.") for name in tensors if name.startswith("gen_vision_model.")}
    llamagen_names(image_config).read({inside[name]: tensors[name] for name in inside}, image, str(folder.path))
    parts = assemble(
        folder,
        config,
        tensors=tensors,
        names=names(config),
        text=TextTokenizer.load(folder.path / "tokenizer.json"),
        image=image,
        text_size=tensors["language_model.model.embed_tokens.weight"].shape[0],
    )
    unused = {name: tensor for name, tensor in tensors.items() if name.startswith(UNUSED)}
    origin = folder.origin(NAME)
    parts.origin = Origin(origin.layout, origin.config, origin.files, unused)
    return parts


def save(parts: ModelFolder, folder: Path) -> None:
    """Write a folder that the original code reads.

    Raises:
        ValueError: the model did not come in this layout, or the layout cannot express it; the reason is named.
    """
    check_expressible(parts, NAME)
    if parts.origin is None or parts.origin.layout != NAME:
        raise ValueError(f"only models that came in it are written in the layout {NAME!r}; take 'janus'.")
    config, image = parts.model.config, parts.image_tokenizer
    theirs = fused(names(config).write(parts.model.state_dict()))
    drawn = llamagen_names(image.config).write(image.state_dict())
    save_weights({**theirs, **{f"gen_vision_model.{k}": v for k, v in drawn.items()}, **parts.origin.unused}, folder)
    write_json(folder / "config.json", parts.origin.config)
    write_side_files(parts, NAME, folder, {})


def _stem(folder: Path) -> str:
    return "pytorch_model" if (folder / "pytorch_model.bin").is_file() else "model"


def _llamagen_arguments(params: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the config of the image tokenizer; what it leaves out is VQ-16's."""
    known = {"image_token_size": "codebook_size", "n_embed": "codebook_embed_dim"}
    return {known.get(name, name): value for name, value in params.items()}


LAYOUT = Layout(
    name=NAME, fits=lambda folder: folder.config.get("model_type") == "multi_modality", load=load, save=save
)
