"""LlamaGen's VQGAN in its own layout, which DeepSeek's Janus shares."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from anymodal.published.layout import no_memory
from anymodal.published.names import Names
from anymodal.published.vqgan import (
    codebook,
    tokenizer_config,
    vqgan_names,
    widths,
)
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.image_config import ImageTokenizerConfig
from anymodal.tokens.picture_config import PictureFit
from anymodal.tokens.tensors import TensorFiles

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


def llamagen_names(config: ImageTokenizerConfig) -> Names:
    """Return LlamaGen's names, which DeepSeek's Janus has below its `gen_vision_model`."""
    stages = [f"conv_blocks.{i}" for i in range(len(config.channels))]
    middle = ("mid.0", "mid.1", "mid.2")
    return vqgan_names(stages, stages, block="res", middle=middle, ignored=["quantize.codebook_used"])


def read_shape(tensors: Mapping[str, Tensor]) -> ImageTokenizerConfig:
    """Read the shape of a tokenizer from its tensors, as LlamaGen publishes it: VQ-16, VQ-8, or another one.

    Raises:
        ValueError: they are no tokenizer of LlamaGen.
    """
    stages = {int(name.split(".")[2]) for name in tensors if name.startswith("encoder.conv_blocks.")}
    needed = ["encoder.conv_in.weight", "encoder.conv_out.weight", "quantize.embedding.weight"]
    if not stages or any(name not in tensors for name in needed):
        raise ValueError(
            f"a tokenizer of LlamaGen must have encoder.conv_blocks and {', '.join(needed)}; use its file."
        )
    ch = tensors["encoder.conv_in.weight"].shape[0]
    blocks = {name.split(".")[4] for name in tensors if name.startswith("encoder.conv_blocks.0.res.")}
    last = [tensors[f"encoder.conv_blocks.{stage}.res.0.conv1.weight"].shape[0] for stage in sorted(stages)]
    size, width = tensors["quantize.embedding.weight"].shape
    multipliers_of = [channels // ch for channels in last]
    return read_llamagen_config({
        "codebook_size": size, "codebook_embed_dim": width, "ch": ch, "encoder_ch_mult": multipliers_of,
        "decoder_ch_mult": multipliers_of, "num_res_blocks": len(blocks),
        "z_channels": tensors["encoder.conv_out.weight"].shape[0],
    })  # fmt: skip


def load_image_tokenizer(path: Path, *, allow_pickle: bool = False) -> ImageTokenizer:
    """Read a tokenizer from LlamaGen's file (`vq_ds16_c2i.pt`), or from a safetensors file of the same names.

    Raises:
        ValueError: it is a pickle and not allowed, or no tokenizer of LlamaGen.
    """
    tensors = TensorFiles.of_file(path, allow_pickle=allow_pickle)
    config = replace(read_shape(tensors), pictures=PictureFit(kind="resize-crop"))
    with no_memory():
        tokenizer = ImageTokenizer(config)
    llamagen_names(config).read(tensors, tokenizer, str(path))
    return tokenizer.eval()
