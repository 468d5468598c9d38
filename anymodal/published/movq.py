"""Emu3's image tokenizer as transformers holds it, to ours and back."""

from collections.abc import Mapping
from typing import Any

from anymodal.published.names import Names, Rule
from anymodal.published.vqgan import (
    block_rules,
    check_writable,
    codebook,
    multipliers,
    refuse_others,
    tokenizer_config,
    widths,
)
from anymodal.tokens.image_config import ImageTokenizerConfig

_EMU3: dict[str, Any] = {
    "codebook_size": 32768,
    "embed_dim": 4,
    "latent_channels": 4,
    "base_channels": 256,
    "channel_multiplier": (1, 2, 2, 4),
    "num_res_blocks": 2,
    "attn_resolutions": (3,),
    "hidden_size": 1024,
    "temporal_downsample_factor": 4,
}
_FIXED = {"double_latent": False, "in_channels": 3, "out_channels": 3, "num_attention_heads": 1, "attention_dropout": 0}


def read_movq_config(theirs: Mapping[str, Any]) -> ImageTokenizerConfig:
    """Read the `vq_config` of transformers' Emu3; a missing key means what it means there.

    Raises:
        ValueError: it asks for something that we do not have.
    """
    refuse_others("vq_config", theirs, _FIXED)
    known = {**_EMU3, **theirs}
    channels = widths("vq_config.channel_multiplier", known["base_channels"], known["channel_multiplier"])
    stages = sorted(known["attn_resolutions"] or ())
    config = tokenizer_config(
        "vq_config",
        architecture="movq",
        channels=channels,
        blocks=known["num_res_blocks"],
        latent_channels=known["latent_channels"],
        attention_stages=stages,
        temporal_down_sampling=known["temporal_downsample_factor"],
        quantizer=codebook("vq", known["codebook_size"], known["embed_dim"]),
    )
    attended = {channels[stage] for stage in stages} | {channels[-1]}
    if attended != {known["hidden_size"]}:
        raise ValueError(
            f"vq_config.hidden_size must be the width of every stage with attention, got {known['hidden_size']} and "
            f"{sorted(attended)}; such a tokenizer cannot be loaded."
        )
    return config


def write_movq_config(config: ImageTokenizerConfig) -> dict[str, Any]:
    """Return the `vq_config` of transformers' Emu3.

    Raises:
        ValueError: Emu3 has no such tokenizer.
    """
    wanted = {"architecture": "movq", "kind": "vq", "mid_attention": True, "has_decoder": True}
    check_writable("transformers' Emu3", config, **wanted)
    if any(config.channels[stage] != config.channels[-1] for stage in config.attention_stages):
        raise ValueError(
            f"transformers' Emu3 attends with one width, got stages {list(config.attention_stages)} of channels "
            f"{list(config.channels)}; this tokenizer cannot be written so."
        )
    return {
        **_FIXED,
        "codebook_size": config.quantizer.codebook_size,
        "embed_dim": config.latent_channels,
        "latent_channels": config.latent_channels,
        "base_channels": config.channels[0],
        "channel_multiplier": multipliers(config),
        "num_res_blocks": config.blocks,
        "attn_resolutions": list(config.attention_stages),
        "hidden_size": config.channels[-1],
        "temporal_downsample_factor": config.temporal_down_sampling,
    }


def movq_names(config: ImageTokenizerConfig) -> Names:
    """Return transformers' names of Emu3's tokenizer, below its `vqmodel`."""
    last = len(config.channels) - 1
    rules = [Rule("quantizer.codebook.embedding", "quantize.embedding.weight")]
    rules += [
        *_time_rules("encoder.halvings.*", "encoder.time_conv.*.conv"),
        *_time_rules("encoder.last", "quant_conv"),
    ]
    rules += [*_time_rules("decoder.doublings.*", "decoder.time_conv.*.conv")]
    rules += [*_time_rules("decoder.first", "post_quant_conv")]
    for coder, norm in (("encoder", "group_norm"), ("decoder", "spatial_norm")):
        rules += _residual_rules(f"{coder}.residuals.*", f"{coder}.time_res_stack.*")
        for i in range(last + 1):  # the decoder goes up from the last stage
            mine = f"down_blocks.{i}" if coder == "encoder" else f"up_blocks.{i}"
            stage = f"down_block.down.{i}" if coder == "encoder" else f"up_block.up.{last - i}"
            ours, theirs = f"{coder}.spatial.{mine}", f"{coder}.{stage}"
            rules += block_rules(f"{ours}.resnets.*", f"{theirs}.block.*")
            rules += [Rule(f"{ours}.attentions.*.{norm}.*", f"{theirs}.attn_norms.*.*")]
            rules += _attention_rules(f"{ours}.attentions.*", f"{theirs}.attn.*")
            rules += [Rule(f"{ours}.downsamplers.0.*", f"{theirs}.downsample.*")]
            rules += [Rule(f"{ours}.upsamplers.0.*", f"{theirs}.upsample.*")]
        ours, theirs = f"{coder}.spatial.mid_block", f"{coder}.middle_block"
        rules += block_rules(f"{ours}.resnets.0", f"{theirs}.block_1")
        rules += block_rules(f"{ours}.resnets.1", f"{theirs}.block_2")
        rules += [Rule(f"{ours}.attentions.0.{norm}.*", f"{theirs}.attn_norm.*")]
        rules += _attention_rules(f"{ours}.attentions.0", f"{theirs}.attn_1")
        rules += [Rule(f"{coder}.spatial.conv_norm_out.*", f"{coder}.norm_out.*")]
        rules += [Rule(f"{coder}.spatial.conv_{end}.*", f"{coder}.conv_{end}.*") for end in ("in", "out")]
    return Names(rules)


def _time_rules(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.{each}", f"{theirs}.conv.{each}") for each in ("weight", "bias")]


def _residual_rules(ours: str, theirs: str) -> list[Rule]:
    norms = [Rule(f"{ours}.norm{i}.*", f"{theirs}.norm{i}.*") for i in (1, 2)]
    return [*norms, *_time_rules(f"{ours}.conv1", f"{theirs}.conv1"), *_time_rules(f"{ours}.conv2", f"{theirs}.conv2")]


def _attention_rules(ours: str, theirs: str) -> list[Rule]:
    pairs = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "out_proj"}
    return [Rule(f"{ours}.{mine}.*", f"{theirs}.{other}.*") for mine, other in pairs.items()]
