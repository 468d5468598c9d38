"""The quantizers of image tokenizers: one face over vector-quantize-pytorch."""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from anymodal.tokens.image_config import QuantizerConfig


@dataclass(frozen=True)
class Quantized:
    """Latents after quantization, their codes and the codebook loss (zero where the quantizer has none)."""

    latents: Float[Tensor, "b n c"]
    codes: Int[Tensor, "b n"]
    loss: Float[Tensor, ""]


class Quantizer(nn.Module):
    """Project latents to the codebook's width, quantize them there, and project back.

    >>> quantizer = Quantizer(QuantizerConfig(kind="fsq", codebook_size=64, levels=(8, 8)), latent_channels=16)
    >>> quantizer(torch.zeros(1, 4, 16)).codes.shape
    torch.Size([1, 4])
    """

    def __init__(self, config: QuantizerConfig, latent_channels: int) -> None:
        """Build the codebook that `config` asks for."""
        super().__init__()
        self.config = config
        width = len(config.levels) if config.kind == "fsq" else config.codebook_dim
        self.project_in = nn.Linear(latent_channels, width)
        self.project_out = nn.Linear(width, latent_channels)
        self.codebook = _codebook(config)

    def forward(self, latents: Float[Tensor, "b n c"]) -> Quantized:
        """Quantize latents; gradients pass straight through (arXiv:1711.00937, section 3.2)."""
        narrow = self.project_in(latents).float()
        with torch.autocast(narrow.device.type, enabled=False):
            result = self.codebook(narrow)
        quantized, codes = result[0], result[1]
        loss = result[2].sum() if len(result) > 2 else narrow.new_zeros(())
        wide = quantized.to(self.project_out.weight.dtype)
        return Quantized(latents=self.project_out(wide), codes=codes.long(), loss=loss.float())

    def look_up(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b n c"]:
        """Return the latents of codes in [0, codebook_size)."""
        return self.project_out(self.vectors(codes).to(self.project_out.weight.dtype))

    def vectors(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b n width"]:
        """Return the vectors of codes in [0, codebook_size), as wide as the codebook."""
        if self.config.kind in ("vq", "l2-vq", "simvq"):
            return F.embedding(codes, cast(Tensor, self.codebook.codebook))
        return cast(Any, self.codebook).indices_to_codes(codes)


def _codebook(config: QuantizerConfig) -> nn.Module:
    import vector_quantize_pytorch as vqp  # noqa: PLC0415  (it costs a second; only tokenizers need it)

    if config.kind == "fsq":
        return vqp.FSQ(levels=list(config.levels))
    if config.kind == "lfq":
        return vqp.LFQ(
            dim=config.codebook_dim,
            codebook_size=config.codebook_size,
            entropy_loss_weight=config.entropy_weight,
            commitment_loss_weight=config.commitment_weight,
        )
    if config.kind == "simvq":
        return vqp.SimVQ(
            dim=config.codebook_dim,
            codebook_size=config.codebook_size,
            input_to_quantize_commit_loss_weight=config.commitment_weight,
        )
    return vqp.VectorQuantize(
        dim=config.codebook_dim,
        codebook_size=config.codebook_size,
        use_cosine_sim=config.kind == "l2-vq",
        commitment_weight=config.commitment_weight,
        threshold_ema_dead_code=config.dead_code_threshold,
        kmeans_init=False,
    )


def flatten_grid(latents: Float[Tensor, "b c rows columns"]) -> Float[Tensor, "b n c"]:
    """Return a grid of latents as a sequence, row by row."""
    return rearrange(latents, "b c rows columns -> b (rows columns) c")
