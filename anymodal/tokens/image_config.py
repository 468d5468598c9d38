"""Configuration of image tokenizers; free of torch."""

from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from anymodal.configuration import check_ranges
from anymodal.tokens.picture_config import PictureFit

_SPATIAL_NORM_GROUPS = 32  # diffusers' SpatialNorm takes no other


def later(default: Any) -> Any:
    """Return a field that older configurations lack: at its default it leaves their fingerprints as they were."""
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """What maps latents to codes.

    `l2-vq` compares normalised vectors (ViT-VQGAN, arXiv:2110.04627), `fsq` rounds bounded latents (arXiv:2309.15505),
    `lfq` takes signs (arXiv:2310.05737), `simvq` learns one linear map of a frozen codebook (arXiv:2411.02038).
    The codebook of `vq` and `l2-vq` follows its latents: by moving averages, or by the gradients of a loss as in VQGAN,
    LlamaGen and MoVQ, which is how published codebooks are held.

    With a `dead_code_threshold` above 0, training puts vectors of codes that are hardly ever used where latents are;
    moving averages do so below that many uses a step. Codes of `fsq` and `lfq` have no vectors to move, and those of
    `simvq` move together.
    """

    kind: Literal["vq", "l2-vq", "fsq", "lfq", "simvq"] = "l2-vq"
    codebook_size: int = 16384
    codebook_dim: int = 8
    levels: tuple[int, ...] = ()
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    dead_code_threshold: int = 1
    codebook_update: Literal["average", "gradient"] = later("average")

    def __post_init__(self) -> None:
        """Check that the codebook is well-formed."""
        check_ranges(self, codebook_size=2**20, codebook_dim=2**16)
        if self.codebook_size * self.codebook_dim > 2**26:
            raise ValueError(
                f"a codebook must have at most {2**26} numbers, got {self.codebook_size} x {self.codebook_dim}; "
                "the config is broken."
            )
        if any(level < 2 for level in self.levels):
            raise ValueError(f"every entry of levels must be at least 2, got {list(self.levels)}; leave it out.")
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
        if self.codebook_update == "gradient" and self.kind not in ("vq", "l2-vq"):
            raise ValueError(f"codebook_update belongs to vq and l2-vq, got kind {self.kind!r}; leave it out.")

    @property
    def width(self) -> int:
        """Numbers of the vector behind a code."""
        return len(self.levels) if self.kind == "fsq" else self.codebook_dim


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig:
    """Shape of an image tokenizer.

    `diffusers` builds the VQGAN encoder and decoder (arXiv:2012.09841) from diffusers' blocks, with attention behind
    every block of the stages in `attention_stages` (the first has the full resolution). `movq` adds a path through
    time, over which `temporal_down_sampling` frames share a code, and a decoder that looks at the codes in every norm
    (MoVQ, arXiv:2209.09002, as Emu3 extends it). `unshuffle` starts with a pixel-unshuffle of `patch` and is several
    times faster on a CPU. Every entry of `channels` behind the first halves the resolution once more. Without
    `has_decoder` pictures can be read and not drawn: so some published tokenizers come. `pictures` says how they are
    brought to size before they are read.
    """

    architecture: Literal["diffusers", "unshuffle", "movq"] = "unshuffle"
    channels: tuple[int, ...] = (128, 256)
    blocks: int = 2
    latent_channels: int = 64
    patch: int = 4
    norm_groups: int = 32
    mid_attention: bool = True
    quantizer: QuantizerConfig = QuantizerConfig()
    attention_stages: tuple[int, ...] = later(())
    temporal_down_sampling: int = later(1)
    has_decoder: bool = later(True)
    pictures: PictureFit = later(PictureFit(kind="crop"))

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        if not 1 <= len(self.channels) <= 16 or not all(1 <= width <= 2**16 for width in self.channels):
            raise ValueError(
                f"channels must name 1 to 16 widths in [1, {2**16}], got {len(self.channels)}: "
                f"{list(self.channels[:16])}; the config is broken."
            )
        check_ranges(self, blocks=2**8, latent_channels=2**16, patch=2**10, norm_groups=2**16)
        check_ranges(self, temporal_down_sampling=2**10)
        if self.architecture != "unshuffle" and any(width % self.norm_groups for width in self.channels):
            raise ValueError(
                f"norm_groups must divide every entry of channels, got {self.norm_groups} and {list(self.channels)}."
            )
        self._check_stages()
        self._check_time()

    def _check_stages(self) -> None:
        if list(self.attention_stages) != sorted({*self.attention_stages} & {*range(len(self.channels))}):
            raise ValueError(
                f"attention_stages must ascend within [0, {len(self.channels)}), got {list(self.attention_stages)}; "
                "name every stage once, in the order of channels."
            )
        if self.attention_stages and self.architecture == "unshuffle":
            raise ValueError("attention_stages belong to diffusers and movq, got unshuffle; leave them out.")

    def _check_time(self) -> None:
        factor = self.temporal_down_sampling
        if factor < 1 or factor & (factor - 1):
            raise ValueError(f"temporal_down_sampling must be a power of two, got {factor}.")
        if factor > 1 and self.architecture != "movq":
            raise ValueError(f"temporal_down_sampling belongs to movq, got {self.architecture!r}; leave it out.")
        if self.architecture == "movq" and self.quantizer.width != self.latent_channels:
            raise ValueError(
                f"movq quantizes its latents as they are: latent_channels must be the width of the codebook, "
                f"got {self.latent_channels} and {self.quantizer.width}; change one of them."
            )
        if self.architecture == "movq" and self.norm_groups != _SPATIAL_NORM_GROUPS:
            raise ValueError(f"movq needs norm_groups {_SPATIAL_NORM_GROUPS}, got {self.norm_groups}; leave it out.")

    @property
    def down_sampling(self) -> int:
        """How many pixels one code spans in each direction."""
        return int(2 ** (len(self.channels) - 1) * (self.patch if self.architecture == "unshuffle" else 1))
