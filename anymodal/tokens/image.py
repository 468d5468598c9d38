"""ImageTokenizer: pictures to grids of codes and back."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from anymodal.configuration import from_dict, to_dict
from anymodal.tokens.image_config import ImageTokenizerConfig
from anymodal.tokens.quantizer import Quantizer, flatten_grid
from anymodal.tokens.weights import load_weights, read_json, save_weights, write_json


@dataclass(frozen=True)
class Reconstruction:
    """What a training step of an image tokenizer needs."""

    pixels: Float[Tensor, "b 3 h w"]
    codes: Int[Tensor, "b rows columns"]
    codebook_loss: Float[Tensor, ""]


class ImageTokenizer(nn.Module):
    """Encoder, quantizer and decoder of pictures whose sides `down_sampling` divides.

    >>> tokenizer = ImageTokenizer(ImageTokenizerConfig(channels=(32, 32), blocks=1))
    >>> tokenizer.encode(torch.zeros(1, 3, 64, 32)).shape
    torch.Size([1, 8, 4])
    """

    def __init__(self, config: ImageTokenizerConfig) -> None:
        """Build an untrained tokenizer."""
        super().__init__()
        self.config = config
        self.encoder, self.decoder = _coders(config)
        self.quantizer = Quantizer(config.quantizer, config.latent_channels)

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.config.quantizer.codebook_size

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Reconstruction:
        """Reconstruct pixels in [-1, 1] with gradients."""
        latents = self.encoder(self._checked(pixels))
        rows = latents.shape[2]
        quantized = self.quantizer(flatten_grid(latents))
        decoded = self.decoder(rearrange(quantized.latents, "b (rows columns) c -> b c rows columns", rows=rows))
        codes = rearrange(quantized.codes, "b (rows columns) -> b rows columns", rows=rows)
        return Reconstruction(pixels=decoded.float(), codes=codes, codebook_loss=quantized.loss)

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b rows columns"]:
        """Return the codes, in [0, codebook_size), of pixels in [-1, 1].

        Raises:
            ValueError: a side of the pictures is no multiple of the down-sampling.
        """
        latents = self.encoder(self._checked(pixels).to(self.dtype))
        training = self.quantizer.training
        codes = self.quantizer.eval()(flatten_grid(latents)).codes
        self.quantizer.train(training)
        return rearrange(codes, "b (rows columns) -> b rows columns", rows=latents.shape[2])

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "b rows columns"]) -> Float[Tensor, "b 3 h w"]:
        """Return pixels in [-1, 1] of codes in [0, codebook_size).

        Raises:
            ValueError: a code is out of range.
        """
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size):
            raise ValueError(
                f"codes must lie in [0, {self.codebook_size}), got {int(codes.min())} to {int(codes.max())}; "
                "decode them with the image tokenizer that made them."
            )
        latents = self.quantizer.look_up(rearrange(codes, "b rows columns -> b (rows columns)"))
        grid = rearrange(latents, "b (rows columns) c -> b c rows columns", rows=codes.shape[1])
        return self.decoder(grid).float().clamp(-1, 1)

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of the weights."""
        return self.quantizer.project_in.weight.dtype

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits over configuration and weights: which codes mean what."""
        digest = hashlib.sha256(json.dumps(to_dict(self.config), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.state_dict(), folder)
        write_json(folder / "config.json", to_dict(self.config))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "ImageTokenizer":
        """Load what `save_pretrained` wrote, in evaluation mode.

        Raises:
            ValueError: a file, a tensor or a key is missing or does not fit.
        """
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise ValueError(
                f"{folder} holds no image tokenizer: {path} is missing; train one with `anymodal tokenizers image`."
            )
        tokenizer = cls(from_dict(ImageTokenizerConfig, read_json(path), where=str(path)))
        load_weights(tokenizer, Path(folder))
        return tokenizer.eval()

    def _checked(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        height, width = pixels.shape[-2:]
        factor = self.config.down_sampling
        if height % factor or width % factor or not height or not width:
            raise ValueError(
                f"the sides of a picture must be multiples of {factor}, got {height} x {width}; "
                "resize or crop it first."
            )
        return pixels


class _PositionNorm(nn.Module):
    """LayerNorm over channels at every position, so that far parts of a picture do not change each other's codes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class _Residual(nn.Module):
    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = _PositionNorm(width)
        self.conv_1 = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.conv_2 = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        for parameter in self.conv_2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_2(F.silu(self.conv_1(F.silu(self.norm(x)))))


def _coders(config: ImageTokenizerConfig) -> tuple[nn.Module, nn.Module]:
    return _diffusers_coders(config) if config.architecture == "diffusers" else _unshuffle_coders(config)


def _unshuffle_coders(config: ImageTokenizerConfig) -> tuple[nn.Module, nn.Module]:
    """Build a local encoder and a wide decoder.

    Behind its finest level the encoder only looks at the cell of a code, so an object keeps its codes, save those
    at its border, whatever stands beside it. The decoder smooths over the borders.
    """
    widths = config.channels
    encoder: list[nn.Module] = [nn.PixelUnshuffle(config.patch), nn.Conv2d(3 * config.patch**2, widths[0], 1)]
    for i, width in enumerate(widths):
        if i:
            encoder.append(nn.Conv2d(widths[i - 1], width, 2, stride=2))
        encoder += [_Residual(width, kernel=1 if i else 3) for _ in range(config.blocks)]
    encoder += [_PositionNorm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], config.latent_channels, 1)]
    decoder: list[nn.Module] = [nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)]
    for i in reversed(range(len(widths))):
        decoder += [_Residual(widths[i], kernel=3) for _ in range(config.blocks + 1)]
        if i:
            decoder += [nn.Conv2d(widths[i], widths[i - 1] * 4, 3, padding=1), nn.PixelShuffle(2)]
    decoder += [_PositionNorm(widths[0]), nn.SiLU()]
    decoder += [nn.Conv2d(widths[0], 3 * config.patch**2, 3, padding=1), nn.PixelShuffle(config.patch)]
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


def _diffusers_coders(config: ImageTokenizerConfig) -> tuple[nn.Module, nn.Module]:
    from diffusers.models.autoencoders.vae import Decoder, Encoder  # noqa: PLC0415  (diffusers costs seconds)

    shared: dict[str, Any] = {
        "block_out_channels": config.channels,
        "layers_per_block": config.blocks,
        "norm_num_groups": config.norm_groups,
        "mid_block_add_attention": config.mid_attention,
    }
    encoder = Encoder(
        3,
        config.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * len(config.channels),
        double_z=False,
        **shared,
    )
    decoder = Decoder(config.latent_channels, 3, up_block_types=("UpDecoderBlock2D",) * len(config.channels), **shared)
    return encoder, decoder
