"""Configuration of how a picture of any size becomes the pixels that a model reads; free of torch."""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

FitKind = Literal["crop", "pad", "resize-crop", "resize-pad", "area"]
Resample = Literal["bicubic", "lanczos", "bilinear"]

# fields that only some kinds read -> these kinds
_READ_BY: dict[str, tuple[FitKind, ...]] = {
    "pad_colour": ("pad", "resize-pad"),
    "min_side": ("resize-pad",),
    "min_pixels": ("area",),
    "max_pixels": ("area",),
    "max_ratio": ("area",),
}


@dataclass(frozen=True, kw_only=True)
class PictureFit:
    """Say how a picture is brought to a size and how its bytes are scaled.

    `crop` resamples the centred box that has the shape of the size, `pad` resamples the whole picture and fills up;
    both are ours. The others equal the image processors of published models, byte by byte: `resize-crop` brings the
    short side to the size and cuts the long one (Chameleon, arXiv:2405.09818; what Janus draws, arXiv:2410.13848),
    `resize-pad` is `pad` with a least side (what Janus looks at), `area` keeps about the picture's own shape
    (Emu3, arXiv:2409.18869): its size comes from `anymodal.data.fitting.fitted_size`.

    Args:
        kind: how a picture of another shape is fitted.
        resample: the filter of the resizing.
        pad_colour: red, green and blue beside the picture, in [0, 255].
        scale: a byte times this, minus one, is a pixel.
        min_side: pixels that the short side keeps before padding, even where that widens it (Janus' `min_size`).
        min_pixels: the area below which a picture is enlarged.
        max_pixels: the area above which a picture is shrunk.
        max_ratio: long side by short side above which a picture is refused.

    Raises:
        ValueError: an unknown kind or filter, a number out of its range, or one that the kind does not read.

    >>> PictureFit(kind="resize-pad", pad_colour=(127, 127, 127), min_side=14).resample
    'bicubic'
    """

    kind: FitKind
    resample: Resample = "bicubic"
    pad_colour: tuple[int, int, int] = (255, 255, 255)
    scale: float = 1 / 127.5
    min_side: int = 1
    min_pixels: int = 512 * 512
    max_pixels: int = 1024 * 1024
    max_ratio: float = 200.0

    def __post_init__(self) -> None:
        """Refuse what fits no picture, and settings that would be ignored."""
        for name, allowed in (("kind", get_args(FitKind)), ("resample", get_args(Resample))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} of a picture fit must be one of {', '.join(map(repr, allowed))}, "
                    f"got {getattr(self, name)!r}; choose one of them."
                )
        self._check_numbers()
        for field in fields(self):
            kinds = _READ_BY.get(field.name, (self.kind,))
            if self.kind not in kinds and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name} belongs to {' and '.join(map(repr, kinds))}, got {getattr(self, field.name)!r} "
                    f"with kind {self.kind!r}; leave it out."
                )

    def _check_numbers(self) -> None:
        if len(self.pad_colour) != 3 or not all(0 <= value <= 255 for value in self.pad_colour):  # noqa: PLR2004
            raise ValueError(f"pad_colour must be three numbers in [0, 255], got {self.pad_colour}; name a colour.")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be above 0 and finite, got {self.scale}; 1 / 127.5 reaches from -1 to 1.")
        if self.min_side < 1:
            raise ValueError(f"min_side must be at least 1 pixel, got {self.min_side}; 1 widens nothing.")
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"min_pixels must be in [1, max_pixels], got {self.min_pixels} and {self.max_pixels}; change one."
            )
        if not 1 <= self.max_ratio < math.inf:
            raise ValueError(f"max_ratio must be at least 1 and finite, got {self.max_ratio}; 1 allows squares alone.")
