"""Configuration of image tokenizers; free of torch."""

from dataclasses import dataclass
from math import prod
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """What maps latents to codes.

    `l2-vq` compares normalised vectors (ViT-VQGAN, arXiv:2110.04627), `fsq` rounds bounded latents (arXiv:2309.15505),
    `lfq` takes signs (arXiv:2310.05737), `simvq` learns one linear map of a frozen codebook (arXiv:2411.02038).
    """

    kind: Literal["vq", "l2-vq", "fsq", "lfq", "simvq"] = "l2-vq"
    codebook_size: int = 16384
    codebook_dim: int = 8
    levels: tuple[int, ...] = ()
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    dead_code_threshold: int = 1

    def __post_init__(self) -> None:
        """Check that the codebook is well-formed."""
        if self.kind == "fsq" and prod(self.levels) != self.codebook_size:
            raise ValueError(
                f"an fsq quantizer needs levels whose product is codebook_size, got levels {list(self.levels)} "
                f"(product {prod(self.levels)}) and codebook_size {self.codebook_size}; change one of them."
            )
        if self.kind != "fsq" and self.levels:
            raise ValueError(f"levels belong to the fsq quantizer, got kind {self.kind!r}; leave them out.")
        if self.kind == "lfq" and 2**self.codebook_dim != self.codebook_size:
            raise ValueError(
                f"an lfq quantizer has 2 ** codebook_dim codes, got codebook_dim {self.codebook_dim} and "
                f"codebook_size {self.codebook_size}; change one of them."
            )
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, got {self.codebook_size}.")


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig:
    """Shape of an image tokenizer.

    `diffusers` builds the VQGAN encoder and decoder (arXiv:2012.09841) from diffusers' blocks. `unshuffle` starts with
    a pixel-unshuffle of `patch` and is several times faster on a CPU. Every entry of `channels` behind the first halves
    the resolution once more.
    """

    architecture: Literal["diffusers", "unshuffle"] = "unshuffle"
    channels: tuple[int, ...] = (128, 256)
    blocks: int = 2
    latent_channels: int = 64
    patch: int = 4
    norm_groups: int = 32
    mid_attention: bool = True
    quantizer: QuantizerConfig = QuantizerConfig()

    def __post_init__(self) -> None:
        """Check that the group norms divide the channels."""
        if not self.channels:
            raise ValueError("channels must name at least one width, got none.")
        if self.architecture == "diffusers" and any(width % self.norm_groups for width in self.channels):
            raise ValueError(
                f"norm_groups must divide every entry of channels, got {self.norm_groups} and {list(self.channels)}."
            )

    @property
    def down_sampling(self) -> int:
        """How many pixels one code spans in each direction."""
        return int(2 ** (len(self.channels) - 1) * (self.patch if self.architecture == "unshuffle" else 1))
