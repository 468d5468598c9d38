"""ImageTokenizer: pictures to grids of codes and back."""

import hashlib
import json
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from anymodal.configuration import from_dict, to_dict
from anymodal.tokens.image_config import ImageTokenizerConfig
from anymodal.tokens.movq import MovqDecoder, MovqEncoder
from anymodal.tokens.quantizer import Quantizer, flatten_grid
from anymodal.tokens.weights import load_weights, read_json, save_weights, write_json

Coder = TypeVar("Coder", bound=nn.Module)
DECODING = ("decoder.", "quantizer.project_out.")


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
        self.quantizer = Quantizer(config.quantizer, config.latent_channels, project=config.architecture != "movq")

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

    def keep_codes(self) -> None:
        """Let nothing learn but what decodes: pictures keep their codes, and codes in shards stay true."""
        for part in (self.encoder, self.quantizer.project_in, self.quantizer.codebook):
            part.requires_grad_(False)

    def redraw(self, pixels: Float[Tensor, "b 3 h w"]) -> Reconstruction:
        """Reconstruct pixels in [-1, 1] with gradients of what decodes alone."""
        codes = self.encode(pixels)
        latents = self.quantizer.look_up(codes.flatten(1))
        decoded = self.decoder(rearrange(latents, "b (rows columns) c -> b c rows columns", rows=codes.shape[1]))
        return Reconstruction(pixels=decoded.float(), codes=codes, codebook_loss=decoded.new_zeros(()).float())

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b rows columns"]:
        """Return the codes, in [0, codebook_size), of pixels in [-1, 1].

        Raises:
            ValueError: a side of the pictures is no multiple of the down-sampling.
        """
        latents = self.encoder(self._checked(pixels).to(self.dtype))
        return rearrange(self._codes(latents), "b (rows columns) -> b rows columns", rows=latents.shape[2])

    @torch.no_grad()
    def encode_video(self, pixels: Float[Tensor, "b frames 3 h w"]) -> Int[Tensor, "b slices rows columns"]:
        """Return the codes of frames in [-1, 1], one grid for `temporal_down_sampling` frames.

        Raises:
            ValueError: the tokenizer has no path through time, or the frames or their sides do not divide.
        """
        encoder, factor = self._through_time(self.encoder, MovqEncoder), self.config.temporal_down_sampling
        if not pixels.shape[1] or pixels.shape[1] % factor:
            raise ValueError(
                f"a video must have a multiple of {factor} frames, got {pixels.shape[1]}; repeat or drop some."
            )
        self._checked(pixels[:, 0])
        latents = encoder.encode_frames(pixels.to(self.dtype))
        codes = self._codes(rearrange(latents, "b c slices rows columns -> b c (slices rows) columns"))
        shape = {"slices": latents.shape[2], "rows": latents.shape[3]}
        return rearrange(codes, "b (slices rows columns) -> b slices rows columns", **shape)

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "b rows columns"]) -> Float[Tensor, "b 3 h w"]:
        """Return pixels in [-1, 1] of codes in [0, codebook_size).

        Raises:
            ValueError: a code is out of range, or the tokenizer has no decoder.
        """
        latents = self._looked_up(codes.flatten(1))
        grid = rearrange(latents, "b (rows columns) c -> b c rows columns", rows=codes.shape[1])
        return self.decoder(grid).float().clamp(-1, 1)

    @torch.no_grad()
    def decode_video(self, codes: Int[Tensor, "b slices rows columns"]) -> Float[Tensor, "b frames 3 h w"]:
        """Return frames in [-1, 1], `temporal_down_sampling` of them for every grid of codes.

        Raises:
            ValueError: the tokenizer has no path through time, or a code is out of range.
        """
        decoder = self._through_time(self.decoder, MovqDecoder)
        shape = {"slices": codes.shape[1], "rows": codes.shape[2]}
        latents = self._looked_up(codes.flatten(1))
        grids = rearrange(latents, "b (slices rows columns) c -> b c slices rows columns", **shape)
        return decoder.decode_frames(grids).float().clamp(-1, 1)

    def _codes(self, latents: Float[Tensor, "b c rows columns"]) -> Int[Tensor, "b n"]:
        training = self.quantizer.training
        codes = self.quantizer.eval()(flatten_grid(latents)).codes
        self.quantizer.train(training)
        return codes

    def _looked_up(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b n c"]:
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size):
            raise ValueError(
                f"codes must lie in [0, {self.codebook_size}), got {int(codes.min())} to {int(codes.max())}; "
                "decode them with the image tokenizer that made them."
            )
        return self.quantizer.look_up(codes)

    def _through_time(self, coder: nn.Module, kind: type[Coder]) -> Coder:
        if not isinstance(coder, kind):
            raise ValueError(
                f"videos need a movq tokenizer with all its parts, this one is {self.config.architecture!r}; "
                "treat the frames as pictures."
            )
        return coder

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of the weights."""
        return next(self.encoder.parameters()).dtype

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits over what makes the codes of a picture: decoders may differ, or not be there."""
        digest = hashlib.sha256(json.dumps(_meaning(self.config), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if not name.startswith(DECODING):
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
            inside = path.with_name("image_tokenizer")
            advice = f"it is in {inside}" if inside.is_dir() else "train one with `anymodal tokenizers image`"
            raise ValueError(f"{folder} holds no image tokenizer: {path} is missing; {advice}.")
        config = from_dict(ImageTokenizerConfig, read_json(path), where=str(path))
        with torch.device("meta"):  # shapes without numbers, until the file has brought as many
            tokenizer = cls(config)
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


def _meaning(config: Any) -> dict[str, Any]:
    """Return a configuration as plain data, without later fields that say nothing new."""
    values = {each.name: getattr(config, each.name) for each in fields(config)}
    silent = {each.name for each in fields(config) if each.metadata.get("later") and values[each.name] == each.default}
    told = {name: value for name, value in values.items() if name not in silent and name != "has_decoder"}
    return {name: _meaning(value) if is_dataclass(value) else to_dict(value) for name, value in told.items()}


class _NoDecoder(nn.Module):
    def forward(self, *_: Any) -> Tensor:
        raise ValueError(
            "this image tokenizer has no decoder: it reads pictures and does not draw them; "
            "load one from files that hold the decoder."
        )


def _coders(config: ImageTokenizerConfig) -> tuple[nn.Module, nn.Module]:
    if config.architecture == "unshuffle":
        encoder, decoder = _unshuffle_coders(config)
    else:
        encoder, decoder = _diffusers_coders(config)
    if config.architecture == "movq":
        encoder, decoder = MovqEncoder(config, encoder), MovqDecoder(config, decoder)
    return encoder, decoder if config.has_decoder else _NoDecoder()


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

    attend = [stage in config.attention_stages for stage in range(len(config.channels))]
    shared: dict[str, Any] = {
        "block_out_channels": config.channels,
        "layers_per_block": config.blocks,
        "norm_num_groups": config.norm_groups,
        "mid_block_add_attention": config.mid_attention,
    }
    down = tuple("AttnDownEncoderBlock2D" if each else "DownEncoderBlock2D" for each in attend)
    up = tuple("AttnUpDecoderBlock2D" if each else "UpDecoderBlock2D" for each in reversed(attend))
    norm = "spatial" if config.architecture == "movq" else "group"
    encoder = Encoder(3, config.latent_channels, down_block_types=down, double_z=False, **shared)
    return encoder, Decoder(config.latent_channels, 3, up_block_types=up, norm_type=norm, **shared)
