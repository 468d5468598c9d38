"""Picture bytes in, RGB pixels out: safely, and right for every mode."""

import io
import struct
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anymodal.data.fitting import fit_picture
from anymodal.data.jpeg import decode_jpeg, jpeg_size
from anymodal.tokens.picture_config import FitKind, PictureFit

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000
RGB = Image.Image | NDArray[np.uint8]  # in mode "RGB", or [h, w, 3]
Reason = Literal["empty", "unknown format", "too large", "truncated", "broken"]

_PNG = b"\x89PNG\r\n\x1a\n"
_STARTS = (b"\xff\xd8\xff", _PNG, b"RIFF")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
# how a PNG stores samples -> what its transparent colour is times in the 8 bits that Pillow unpacks
_DEPTHS = {";16B": 1 / 256, ";4": 17, ";2": 85}
_ADVICE = {
    "empty": "leave it out",
    "unknown format": "convert it to JPEG, PNG or WebP",
    "too large": "scale it down",
    "truncated": "fetch it again",
    "broken": "fetch it again",
}


class BadPicture(ValueError):  # noqa: N818 (what it is, as a noun)
    """Say why bytes are no usable picture; `reason` is short and can be counted.

    >>> BadPicture("empty", "0 bytes").reason
    'empty'
    """

    def __init__(self, reason: Reason, came: str) -> None:
        super().__init__(f"a JPEG, PNG or WebP picture is needed, got {came} ({reason}): {_ADVICE[reason]}")
        self.reason = reason


def decode_picture(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to RGB as a viewer would show it on white paper.

    EXIF orientation is applied, transparency composited on white, 16 bits scaled to 8, and an animation gives its first
    frame. The size is checked before any pixel is decoded.

    Raises:
        BadPicture: the bytes are no complete picture of at most `max_pixels` pixels; see its `reason`.
    """
    decoded = decode_rgb(data, max_pixels=max_pixels)
    return decoded if isinstance(decoded, Image.Image) else Image.fromarray(decoded)


def read_picture(path: Path) -> Image.Image:
    """Decode a picture file as `decode_picture` decodes bytes.

    Raises:
        ValueError: there is no such file, or it holds no complete picture.
    """
    if not path.is_file():
        raise ValueError(f"a picture file must exist, {path} {'is a folder' if path.is_dir() else 'does not'}.")
    try:
        return decode_picture(path.read_bytes())
    except BadPicture as error:
        raise ValueError(f"{path}: {error}") from error


def decode_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> RGB:
    """Decode a picture as `decode_picture` does, in whichever form its decoder gives, which saves a copy.

    Raises:
        BadPicture: as of `decode_picture`.
    """
    if not data:
        raise BadPicture("empty", "0 bytes")
    try:
        plain = jpeg_size(data)
        _check_size(plain or _declared_size(data), max_pixels)
        if plain and (decoded := decode_jpeg(data)) is not None:
            return decoded
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, max_pixels)
            packing = str(image.tile[0][3]) if image.tile else ""
            image.load()
            picture = _upright(to_rgb(image, packing=packing), image)
            picture.info = {}
            return picture
    except BadPicture:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPicture("too large", f"over {max_pixels} pixels") from error
    except Exception as error:  # the decoders raise nearly anything on hostile bytes
        raise BadPicture(_why(data, error), f"{len(data)} bytes") from error


def _check_size(size: tuple[int, int] | None, max_pixels: int) -> None:
    if size is not None and size[0] * size[1] > max_pixels:
        raise BadPicture("too large", f"{size[0]}x{size[1]} pixels where {max_pixels} are allowed in all")


def _declared_size(data: bytes) -> tuple[int, int] | None:
    """Read width and height of a PNG or an extended WebP, for which Pillow warns or takes memory on opening already."""
    if data.startswith(_PNG) and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return None


def _why(data: bytes, error: Exception) -> Reason:
    if not data.startswith(_STARTS):
        return "unknown format"
    cut = "truncated" in str(error) or isinstance(error, EOFError | struct.error)
    short = data[:4] == b"RIFF" and len(data) < int.from_bytes(data[4:8], "little") + 8
    return "truncated" if cut or short else "broken"


def _upright(picture: Image.Image, opened: Image.Image) -> Image.Image:
    """Turn a picture as its file's EXIF says."""
    try:
        turn = _TURNS.get(opened.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF that cannot be read turns nothing, as in every viewer; the pixels are whole
        turn = None
    return picture if turn is None else picture.transpose(turn)


def to_rgb(image: Image.Image, *, packing: str = "") -> Image.Image:
    """Convert a Pillow picture of any mode with a known range to RGB, transparency on white.

    `packing` is how its file stored samples ("RGB;16B", "L;4"): a transparent colour is given in that depth.

    Raises:
        ValueError: the mode is "I" or "F", whose range is unknown.
    """
    if image.mode in ("I", "F"):
        raise ValueError(f"a mode with a known range is needed, got {image.mode!r}: scale to 8 bits and convert it")
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        return _from_deep_grey(image, transparent)
    scale = next((factor for mark, factor in _DEPTHS.items() if packing.endswith(mark)), None)
    if image.mode != "P" and scale is not None and isinstance(transparent, int | tuple):
        scaled = (transparent,) if isinstance(transparent, int) else transparent
        bytes_of = tuple(int(value * scale) for value in scaled)
        image = image.copy()
        image.info["transparency"] = bytes_of[0] if isinstance(transparent, int) else bytes_of
    if image.mode in ("LA", "PA", "RGBA") or transparent is not None:
        seen = image.convert("RGBA")
        paper = Image.new("RGB", seen.size, (255, 255, 255))
        paper.paste(seen, (0, 0), seen)
        return paper
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image, transparent: object) -> Image.Image:
    """Scale 16-bit greys, over which Pillow's own conversion clips, to 8 bits."""
    values = np.asarray(image).astype(np.uint32)
    grey = ((values + 128) // 257).astype(np.uint8)
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def to_pixels(
    image: Image.Image, height: int, width: int, *, fit: PictureFit | FitKind = "crop"
) -> Float[Tensor, "3 {height} {width}"]:
    """Fit a picture to a size and scale its bytes, to [-1, 1] unless `fit` says otherwise.

    A kind alone stands for the fit of that kind with the defaults. A picture of that size already keeps its pixels.

    Raises:
        ValueError: a side is below 1 or too short for `fit`, or `fit` is an unknown kind.
    """
    if isinstance(fit, str):
        fit = fit_of(fit)
    return scaled(to_planes(image, height, width, fit=fit), fit.scale)


def to_planes(picture: RGB, height: int, width: int, *, fit: PictureFit) -> UInt8[Tensor, "3 {height} {width}"]:
    """Fit a picture to a size and keep its bytes, a quarter of what pixels take; `scaled` makes pixels of them.

    Raises:
        ValueError: a side is below 1 or too short for `fit`.
    """
    if not isinstance(picture, Image.Image):
        if picture.shape[:2] == (height, width):
            return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
        picture = Image.fromarray(picture)
    fitted = fit_picture(picture if picture.mode == "RGB" else to_rgb(picture), height, width, fit)
    # Pillow takes bands apart faster than numpy or torch reorder bytes
    bands = [np.frombuffer(fitted.tobytes("raw", band), np.uint8) for band in fitted.getbands()]
    return torch.from_numpy(np.array(bands)).view(3, height, width)


@cache
def fit_of(kind: FitKind) -> PictureFit:
    """Return the fit of a kind with the defaults."""
    return PictureFit(kind=kind)


def scaled(planes: UInt8[Tensor, "*shape"], scale: float) -> Float[Tensor, "*shape"]:
    """Return bytes times `scale`, minus one, on any device; rounded where transformers rounds."""
    divisor = _divisor(scale)
    if divisor is None:
        return planes.double().mul_(scale).float().sub_(1)
    # a number would be turned into its inverse on a GPU, which rounds elsewhere
    return planes.float().div_(torch.tensor(divisor, device=planes.device)).sub_(1)


@cache
def _divisor(scale: float) -> float | None:
    """Return what float32 divides bytes by to the same bits as float64 multiplies them, None where nothing does."""
    values = torch.arange(256, dtype=torch.float64)
    divisor = float(np.float32(1 / scale))
    return divisor if torch.equal(values.float().div(divisor), values.mul(scale).float()) else None


def to_image(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    """Return pixels in [-1, 1] as an RGB picture; values outside are clamped.

    Raises:
        ValueError: a value is not finite.
    """
    values = pixels.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise ValueError("pixels must be finite, got NaN or infinity: look for a diverged model")
    eight_bit = values.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(eight_bit.permute(1, 2, 0).contiguous().numpy())
