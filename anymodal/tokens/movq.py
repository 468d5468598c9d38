"""The path through time of Emu3's image tokenizer, around an encoder and a decoder of single frames."""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from anymodal.tokens.image_config import ImageTokenizerConfig


class MovqEncoder(nn.Module):
    """Map frames to latents, one grid for `temporal_down_sampling` frames; a still picture stands for as many.

    >>> config = ImageTokenizerConfig(architecture="movq", latent_channels=8, temporal_down_sampling=2)
    >>> MovqEncoder(config, nn.Conv2d(3, 8, 2, stride=2)).encode_frames(torch.zeros(1, 4, 3, 8, 6)).shape
    torch.Size([1, 8, 2, 4, 3])
    """

    def __init__(self, config: ImageTokenizerConfig, spatial: nn.Module) -> None:
        """Put the path through time behind `spatial`, which encodes single frames."""
        super().__init__()
        width = config.latent_channels
        self.factor = config.temporal_down_sampling
        self.spatial = spatial
        self.halvings = nn.ModuleList(_CausalConv(width, frames=4, places=3, stride=2) for _ in _halvings(config))
        self.residuals = nn.ModuleList(_Residual(width) for _ in range(config.blocks))
        self.last = _CausalConv(width, frames=3, places=1)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c rows columns"]:
        """Encode still pictures."""
        latents = self.spatial(pixels)  # equal frames have equal latents: once is enough
        return self._through_time(repeat(latents, "b c rows columns -> b c f rows columns", f=self.factor))[:, :, 0]

    def encode_frames(self, pixels: Float[Tensor, "b frames 3 h w"]) -> Float[Tensor, "b c slices rows columns"]:
        """Encode the frames of videos; `temporal_down_sampling` divides their number."""
        latents = self.spatial(rearrange(pixels, "b f c h w -> (b f) c h w"))
        return self._through_time(rearrange(latents, "(b f) c rows columns -> b c f rows columns", b=len(pixels)))

    def _through_time(self, latents: Tensor) -> Tensor:
        for halving in self.halvings:
            latents = F.silu(halving(latents))
        for residual in self.residuals:
            latents = residual(latents)
        return self.last(latents)


class MovqDecoder(nn.Module):
    """Map quantized latents to frames; the vectors of the codes also scale and shift every norm of `spatial`."""

    def __init__(self, config: ImageTokenizerConfig, spatial: nn.Module) -> None:
        """Put the path through time before `spatial`, which decodes single frames."""
        super().__init__()
        width = config.latent_channels
        self.first = _CausalConv(width, frames=3, places=1)
        self.residuals = nn.ModuleList(_Residual(width) for _ in range(config.blocks))
        self.doublings = nn.ModuleList(_CausalConv(width, frames=3, places=3) for _ in _halvings(config))
        self.spatial = spatial

    @property
    def conv_out(self) -> nn.Module:
        """The last layer, in whose gradients losses are weighed against each other."""
        layer = self.spatial.conv_out
        assert isinstance(layer, nn.Module), "diffusers' decoder ends in it"
        return layer

    def forward(self, quantized: Float[Tensor, "b c rows columns"]) -> Float[Tensor, "b 3 h w"]:
        """Decode still pictures: the first frame."""
        latents, condition = self._through_time(quantized[:, :, None])
        return self.spatial(latents[:, :, 0], condition[:, :, 0])

    def decode_frames(self, quantized: Float[Tensor, "b c slices rows columns"]) -> Float[Tensor, "b frames 3 h w"]:
        """Decode videos, `temporal_down_sampling` frames a slice."""
        latents, condition = self._through_time(quantized)
        frames = "b c f rows columns -> (b f) c rows columns"
        pixels = self.spatial(rearrange(latents, frames), rearrange(condition, frames))
        return rearrange(pixels, "(b f) c h w -> b f c h w", b=len(quantized))

    def _through_time(self, quantized: Tensor) -> tuple[Tensor, Tensor]:
        quantized = quantized.to(self.first.weight.dtype)
        both = torch.cat([self.first(quantized), quantized])
        for residual in self.residuals:
            both = residual(both)
        for doubling in self.doublings:
            both = F.silu(doubling(both.repeat_interleave(2, dim=2)))
        latents, condition = both.chunk(2)
        return latents, condition


class _CausalConv(nn.Conv3d):
    """Convolve frames with those before them; two frames of zeros precede the first."""

    def __init__(self, width: int, *, frames: int, places: int, stride: int = 1) -> None:
        padding = (0, places // 2, places // 2)
        super().__init__(width, width, (frames, places, places), stride=(stride, 1, 1), padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 0, 0, 0, 2, 0)))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm3d(width)
        self.conv1 = _CausalConv(width, frames=3, places=3)
        self.norm2 = nn.BatchNorm3d(width)
        self.conv2 = _CausalConv(width, frames=3, places=3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


def _halvings(config: ImageTokenizerConfig) -> range:
    return range(config.temporal_down_sampling.bit_length() - 1)
