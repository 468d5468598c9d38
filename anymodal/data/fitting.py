"""Bring a picture of any size to the size that a model reads, to the byte as published image processors do."""

import math

from PIL import Image

from anymodal.tokens.picture_config import PictureFit

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
}
_MAX_RESIZED_PIXELS = 50_000_000


def fitted_size(size: tuple[int, int], fit: PictureFit, factor: int) -> tuple[int, int]:
    """Return the (height, width) that the kind "area" gives a picture of `size` (height, width), in pixels.

    Both are multiples of `factor` near the picture's own sides, enlarged or shrunk where the area leaves its range;
    rounding may still leave it, as in transformers. Emu3's own code also refuses pictures of sides below `factor`.

    Raises:
        ValueError: `fit` is of another kind, a side or `factor` is below 1, or the picture is too long for its width.
    """
    if fit.kind != "area":
        raise ValueError(f"only kind 'area' chooses a size, got {fit.kind!r}: name the size itself")
    if min(*size, factor) < 1:
        raise ValueError(f"sides and factor must be at least 1 pixel, got {size} and {factor}: name a real size")
    if max(size) / min(size) > fit.max_ratio:
        raise ValueError(
            f"the long side must be at most {fit.max_ratio:g} times the short one, got {size[0]}x{size[1]} pixels: "
            "crop the picture first"
        )
    height, width = (round(side / factor) * factor for side in size)
    if height * width > fit.max_pixels:
        shrink = math.sqrt(math.prod(size) / fit.max_pixels)
        height, width = (max(factor, math.floor(side / shrink / factor) * factor) for side in size)
    elif height * width < fit.min_pixels:
        grow = math.sqrt(fit.min_pixels / math.prod(size))
        height, width = (math.ceil(side * grow / factor) * factor for side in size)
    return height, width


def fit_picture(image: Image.Image, height: int, width: int, fit: PictureFit) -> Image.Image:
    """Return an RGB picture at a size; one that has it already comes back as it is.

    Kind "area" resizes to any size, so that `fitted_size` says what it keeps of the shape. Where "resize-crop" would
    need a huge picture on the way, for a strip, the visible box alone is resampled: the same up to part of a pixel.

    Raises:
        ValueError: a side is below 1, or below the `min_side` of "resize-pad".
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1 pixel, got {height} and {width}: name a real size")
    if fit.kind == "resize-pad" and min(height, width) < fit.min_side:
        raise ValueError(
            f"height and width must be at least min_side {fit.min_side}, got {height} and {width}: "
            "name a larger size or lower min_side"
        )
    if image.size == (width, height):
        return image
    if fit.kind == "crop":
        return _crop(image, height, width, fit)
    if fit.kind == "resize-crop":
        return _resize_crop(image, height, width, fit)
    if fit.kind == "area":
        return image.resize((width, height), _FILTERS[fit.resample])
    return _pad(image, height, width, fit)


def _crop(image: Image.Image, height: int, width: int, fit: PictureFit) -> Image.Image:
    scale = min(image.width / width, image.height / height)
    kept_width, kept_height = width * scale, height * scale
    left, top = (image.width - kept_width) / 2, (image.height - kept_height) / 2
    box = (max(0.0, left), max(0.0, top), min(image.width, left + kept_width), min(image.height, top + kept_height))
    return image.resize((width, height), _FILTERS[fit.resample], box=box)


def _pad(image: Image.Image, height: int, width: int, fit: PictureFit) -> Image.Image:
    scale = min(width / image.width, height / image.height)
    inner = (max(fit.min_side, round(image.width * scale)), max(fit.min_side, round(image.height * scale)))
    paper = Image.new("RGB", (width, height), fit.pad_colour)
    resized = image.resize(inner, _FILTERS[fit.resample])
    paper.paste(resized, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return paper


def _resize_crop(image: Image.Image, height: int, width: int, fit: PictureFit) -> Image.Image:
    if image.width * height >= image.height * width:  # the height fits, the width is over; whole pixels, rounded down
        inner = (image.width * height // image.height, height)
    else:
        inner = (width, image.height * width // image.width)
    if math.prod(inner) > _MAX_RESIZED_PIXELS:
        return _crop(image, height, width, fit)
    left, top = (inner[0] - width) // 2, (inner[1] - height) // 2
    return image.resize(inner, _FILTERS[fit.resample]).crop((left, top, left + width, top + height))
