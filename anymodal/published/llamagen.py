"""LlamaGen's VQGAN in its own layout, which DeepSeek's Janus shares."""

from collections.abc import Mapping
from typing import Any

from anymodal.published.names import Names
from anymodal.published.vqgan import (
    check_llamagen,
    codebook,
    multipliers,
    tokenizer_config,
    vqgan_names,
    widths,
)
from anymodal.tokens.image_config import ImageTokenizerConfig

_LLAMAGEN: dict[str, Any] = {
    "codebook_size": 16384,
    "codebook_embed_dim": 8,
    "codebook_l2_norm": True,
    "z_channels": 256,
    "encoder_ch_mult": (1, 1, 2, 2, 4),
    "decoder_ch_mult": (1, 1, 2, 2, 4),
    "ch": 128,
    "num_res_blocks": 2,
}


def read_llamagen_config(theirs: Mapping[str, Any]) -> ImageTokenizerConfig:
    """Read the arguments of LlamaGen's `VQModel`; none are those of VQ-16, which Janus has.

    Raises:
        ValueError: it asks for something that we do not have.
    """
    known = {**_LLAMAGEN, **theirs}
    if list(known["encoder_ch_mult"]) != list(known["decoder_ch_mult"]):
        raise ValueError(
            f"encoder_ch_mult and decoder_ch_mult must be equal, got {known['encoder_ch_mult']} and "
            f"{known['decoder_ch_mult']}; such a tokenizer cannot be loaded."
        )
    kind = "l2-vq" if known["codebook_l2_norm"] else "vq"
    channels = widths("encoder_ch_mult", known["ch"], known["encoder_ch_mult"])
    return tokenizer_config(
        "the tokenizer's config",
        channels=channels,
        blocks=known["num_res_blocks"],
        latent_channels=known["z_channels"],
        attention_stages=(len(channels) - 1,),
        quantizer=codebook(kind, known["codebook_size"], known["codebook_embed_dim"]),
    )


def write_llamagen_config(config: ImageTokenizerConfig) -> dict[str, Any]:
    """Return the arguments of LlamaGen's `VQModel`, and those of its coders.

    Raises:
        ValueError: LlamaGen has no such tokenizer.
    """
    check_llamagen("LlamaGen", config)
    return {
        "codebook_size": config.quantizer.codebook_size,
        "codebook_embed_dim": config.quantizer.width,
        "codebook_l2_norm": config.quantizer.kind == "l2-vq",
        "encoder_ch_mult": multipliers(config),
        "decoder_ch_mult": multipliers(config),
        "z_channels": config.latent_channels,
        "ch": config.channels[0],
        "num_res_blocks": config.blocks,
    }


def llamagen_names(config: ImageTokenizerConfig) -> Names:
    """Return LlamaGen's names, which DeepSeek's Janus has below its `gen_vision_model`."""
    stages = [f"conv_blocks.{i}" for i in range(len(config.channels))]
    middle = ("mid.0", "mid.1", "mid.2")
    return vqgan_names(stages, stages, block="res", middle=middle, ignored=["quantize.codebook_used"])
