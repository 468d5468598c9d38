"""VQGANs as taming-transformers and transformers hold them, and what all layouts of VQGANs share.

Our tokenizer holds diffusers' encoder and decoder; a layout is a reader and a writer of its configuration, and `Names`.
Theirs are plain mappings, as JSON or YAML hold them; a missing key means what it means there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from anymodal.configuration import from_dict
from anymodal.published.names import Names, Rule, linear_of_conv
from anymodal.tokens.image_config import ImageTokenizerConfig

NORM_GROUPS = 32

_CHAMELEON: dict[str, Any] = {
    "embed_dim": 256,
    "num_embeddings": 8192,
    "latent_channels": 256,
    "base_channels": 128,
    "channel_multiplier": (1, 1, 2, 2, 4),
    "num_res_blocks": 2,
    "resolution": 512,
    "attn_resolutions": None,
    "attn_type": "vanilla",
}
_JANUS: dict[str, Any] = {
    "embed_dim": 8,
    "num_embeddings": 16384,
    "latent_channels": 256,
    "base_channels": 128,
    "channel_multiplier": (1, 1, 2, 2, 4),
    "num_res_blocks": 2,
}
_TRANSFORMERS_FIXED = {"double_latent": False, "in_channels": 3, "out_channels": 3, "dropout": 0}
_TAMING_FIXED = {"double_z": False, "in_channels": 3, "out_ch": 3, "dropout": 0}


def read_chameleon_config(theirs: Mapping[str, Any], *, has_decoder: bool = False) -> ImageTokenizerConfig:
    """Read the `vq_config` of transformers' Chameleon, which has no decoder unless taming's files add it.

    Raises:
        ValueError: it asks for something that we do not have.
    """
    refuse_others("vq_config", theirs, _TRANSFORMERS_FIXED)
    known = {**_CHAMELEON, **theirs}
    attends = known["attn_type"] == "vanilla"
    channels = widths("vq_config.channel_multiplier", known["base_channels"], known["channel_multiplier"])
    stages = _stages(known["resolution"], known["attn_resolutions"], len(channels))
    return tokenizer_config(
        "vq_config",
        channels=channels,
        blocks=known["num_res_blocks"],
        latent_channels=known["latent_channels"],
        mid_attention=attends,
        attention_stages=stages if attends else (),
        has_decoder=has_decoder,
        quantizer=codebook("vq", known["num_embeddings"], known["embed_dim"]),
    )


def write_chameleon_config(config: ImageTokenizerConfig, *, resolution: int = 512) -> dict[str, Any]:
    """Return the `vq_config` of transformers' Chameleon; in `resolution` it counts its stages.

    Raises:
        ValueError: Chameleon has no such tokenizer.
    """
    check_writable("transformers' Chameleon", config, architecture="diffusers", kind="vq")
    if config.attention_stages and not config.mid_attention:
        raise ValueError("transformers' Chameleon has attention everywhere or nowhere; set mid_attention.")
    return {
        **_transformers_config(config),
        "resolution": resolution,
        "attn_resolutions": [resolution >> stage for stage in config.attention_stages] or None,
        "attn_type": "vanilla" if config.mid_attention else "none",
    }


def read_taming_config(theirs: Mapping[str, Any]) -> ImageTokenizerConfig:
    """Read the parameters of taming-transformers' `VQModel`: `embed_dim`, `n_embed`, `ddconfig`.

    Raises:
        ValueError: a key is missing, or it asks for something that we do not have.
    """
    known = _required("the VQGAN's config", theirs, ("embed_dim", "n_embed", "ddconfig"))
    keys = ("ch", "ch_mult", "num_res_blocks", "z_channels", "resolution")
    coder = _required("ddconfig", known["ddconfig"], keys)
    refuse_others("ddconfig", coder, _TAMING_FIXED)
    return tokenizer_config(
        "ddconfig",
        channels=widths("ddconfig.ch_mult", coder["ch"], coder["ch_mult"]),
        blocks=coder["num_res_blocks"],
        latent_channels=coder["z_channels"],
        attention_stages=_stages(coder["resolution"], coder.get("attn_resolutions"), len(coder["ch_mult"])),
        quantizer=codebook("vq", known["n_embed"], known["embed_dim"]),
    )


def taming_names(config: ImageTokenizerConfig) -> Names:
    """Return the names in taming's files, which are transformers' names of Chameleon too, as far as these go."""
    last = len(config.channels) - 1
    ignored = ["loss.*", "colorize", *["decoder.*"] * (not config.has_decoder)]
    down = [f"down.{i}" for i in range(last + 1)]
    up = [f"up.{i}" for i in range(last, -1, -1)]  # the decoder begins with the last stage
    return vqgan_names(down, up, ignored=ignored)


def without_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those of our tensors that transformers' Chameleon has a place for: all but the decoder's."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("decoder.")}


def read_janus_config(theirs: Mapping[str, Any]) -> ImageTokenizerConfig:
    """Read the `vq_config` of transformers' Janus.

    Both sides are normalised here before they are compared, as in the original that the weights were trained with;
    transformers normalises only what it decodes, so its `encode` gives other codes unless the table is of unit length.

    Raises:
        ValueError: it asks for something that we do not have.
    """
    refuse_others("vq_config", theirs, _TRANSFORMERS_FIXED)
    known = {**_JANUS, **theirs}
    channels = widths("vq_config.channel_multiplier", known["base_channels"], known["channel_multiplier"])
    return tokenizer_config(
        "vq_config",
        channels=channels,
        blocks=known["num_res_blocks"],
        latent_channels=known["latent_channels"],
        attention_stages=(len(channels) - 1,),
        quantizer=codebook("l2-vq", known["num_embeddings"], known["embed_dim"]),
    )


def write_janus_config(config: ImageTokenizerConfig) -> dict[str, Any]:
    """Return what the `vq_config` of transformers' Janus says of the tokenizer; `num_patches` is the model's.

    Raises:
        ValueError: Janus has no such tokenizer.
    """
    check_llamagen("transformers' Janus", config, kind="l2-vq")
    return {**_transformers_config(config), "out_channels": 3}


def janus_names(config: ImageTokenizerConfig) -> Names:
    """Return transformers' names of Janus' tokenizer, below its `vqmodel`."""
    stages = range(len(config.channels))
    return vqgan_names([f"down.{i}" for i in stages], [f"up.{i}" for i in stages])


def block_rules(ours: str, theirs: str) -> list[Rule]:
    """Return the rules of residual blocks, which all layouts name alike."""
    return [Rule(f"{ours}.conv_shortcut.*", f"{theirs}.nin_shortcut.*"), Rule(f"{ours}.*", f"{theirs}.*")]


def _attention_rules(ours: str, theirs: str) -> list[Rule]:
    pairs = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    maps = [rule for mine, other in pairs.items() for rule in linear_of_conv(f"{ours}.{mine}", f"{theirs}.{other}")]
    return [Rule(f"{ours}.group_norm.*", f"{theirs}.norm.*"), *maps]


def vqgan_names(
    down: Sequence[str],
    up: Sequence[str],
    *,
    block: str = "block",
    middle: tuple[str, str, str] = ("mid.block_1", "mid.attn_1", "mid.block_2"),
    ignored: Sequence[str] = (),
) -> Names:
    """Return the table of a layout; `down` and `up` are their names of the stages, in the order of the computation."""
    rules = [*linear_of_conv("quantizer.project_in", "quant_conv")]
    rules += linear_of_conv("quantizer.project_out", "post_quant_conv")
    rules += [Rule("quantizer.codebook.embedding", "quantize.embedding.weight")]
    for coder, mine, stages in (("encoder", "down_blocks", down), ("decoder", "up_blocks", up)):
        for i, stage in enumerate(stages):
            ours, theirs = f"{coder}.{mine}.{i}", f"{coder}.{stage}"
            rules += block_rules(f"{ours}.resnets.*", f"{theirs}.{block}.*")
            rules += _attention_rules(f"{ours}.attentions.*", f"{theirs}.attn.*")
            rules += [Rule(f"{ours}.downsamplers.0.*", f"{theirs}.downsample.*")]
            rules += [Rule(f"{ours}.upsamplers.0.*", f"{theirs}.upsample.*")]
        rules += block_rules(f"{coder}.mid_block.resnets.0", f"{coder}.{middle[0]}")
        rules += _attention_rules(f"{coder}.mid_block.attentions.0", f"{coder}.{middle[1]}")
        rules += block_rules(f"{coder}.mid_block.resnets.1", f"{coder}.{middle[2]}")
        rules += [Rule(f"{coder}.conv_in.*", f"{coder}.conv_in.*"), Rule(f"{coder}.conv_out.*", f"{coder}.conv_out.*")]
        rules += [Rule(f"{coder}.conv_norm_out.*", f"{coder}.norm_out.*")]
    return Names(rules, ignored)


def tokenizer_config(where: str, **ours: Any) -> ImageTokenizerConfig:
    """Return the configuration of a VQGAN, its types checked.

    Raises:
        ValueError: something of `where` is of another type.
    """
    return from_dict(ImageTokenizerConfig, {"architecture": "diffusers", "norm_groups": NORM_GROUPS, **ours}, where)


def codebook(kind: str, size: Any, width: Any) -> dict[str, Any]:
    """Return the configuration of a published codebook."""
    return {"kind": kind, "codebook_size": size, "codebook_dim": width, "codebook_update": "gradient"}


def widths(where: str, base: Any, factors: Sequence[Any]) -> list[Any]:
    """Return the channels of every stage.

    Raises:
        ValueError: the first stage is wider than the first convolution, which no known checkpoint has.
    """
    if not factors or factors[0] != 1:
        raise ValueError(f"{where} must begin with 1, got {factors}; such a tokenizer cannot be loaded.")
    return [base * factor for factor in factors]


def multipliers(config: ImageTokenizerConfig) -> list[int]:
    """Return the channels of every stage as multiples of the first.

    Raises:
        ValueError: they are no multiples.
    """
    if any(width % config.channels[0] for width in config.channels):
        raise ValueError(f"channels must be multiples of the first, got {list(config.channels)}; it cannot be written.")
    return [width // config.channels[0] for width in config.channels]


def refuse_others(where: str, theirs: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Refuse settings that we do not have.

    Raises:
        ValueError: one of them.
    """
    for key, value in fixed.items():
        if theirs.get(key, value) != value:
            raise ValueError(f"{where}.{key} must be {value}, got {theirs[key]}; such a tokenizer cannot be loaded.")


def _required(where: str, theirs: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any]:
    missing = [key for key in keys if key not in theirs]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; add it.")
    return theirs


def _stages(resolution: int, attended: Sequence[int] | None, count: int) -> list[int]:
    """Return the stages whose sides, in pictures of `resolution`, are in `attended`."""
    return [stage for stage in range(count) if resolution >> stage in (attended or ())]


def check_writable(layout: str, config: ImageTokenizerConfig, **wanted: Any) -> None:
    """Check that a tokenizer is of the kind that a layout holds.

    Raises:
        ValueError: it is not.
    """
    quantizer = config.quantizer
    found = {**vars(config), "kind": quantizer.kind, "codebook_update": quantizer.codebook_update}
    for key, value in {"norm_groups": NORM_GROUPS, "codebook_update": "gradient", **wanted}.items():
        if found[key] != value:
            raise ValueError(
                f"{layout} needs {key} {value!r}, got {found[key]!r}; this tokenizer cannot be written so."
            )


def check_llamagen(layout: str, config: ImageTokenizerConfig, **wanted: Any) -> None:
    """Check that a tokenizer is of LlamaGen's kind: attention in its last stage and in the middle.

    Raises:
        ValueError: it is not.
    """
    last = (len(config.channels) - 1,)
    wanted |= {"architecture": "diffusers", "mid_attention": True, "attention_stages": last, "has_decoder": True}
    check_writable(layout, config, **wanted)


def _transformers_config(config: ImageTokenizerConfig) -> dict[str, Any]:
    return {
        "embed_dim": config.quantizer.width,
        "num_embeddings": config.quantizer.codebook_size,
        "latent_channels": config.latent_channels,
        "double_latent": False,
        "in_channels": 3,
        "dropout": 0.0,
        "base_channels": config.channels[0],
        "channel_multiplier": multipliers(config),
        "num_res_blocks": config.blocks,
    }
