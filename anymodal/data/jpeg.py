"""Plain JPEGs by simplejpeg where it is installed: half again as fast as Pillow, and the same pixels."""

from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

START = b"\xff\xd8\xff"
SCAN = b"\xda"
PLAIN = ("YCbCr", "Gray")
TURNED = (b"Exif\0", b"tiff:Orientation")  # what may say that the picture is to be turned


@cache
def turbo() -> ModuleType | None:
    """Return simplejpeg (the extra `fast`), None where it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    found: ModuleType = simplejpeg
    return found


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG that `decode_jpeg` may decode; None for every other picture, and without turbo.

    Such a picture is colour or grey, and nothing in it speaks of turning.
    """
    fast = turbo()
    if fast is None or not data.startswith(START) or any(word in _head(data) for word in TURNED):
        return None
    try:
        height, width, colours, _ = fast.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colours in PLAIN else None


def _head(data: bytes) -> bytes:
    """Return what stands before the scan, which alone is searched; all where markers do not lead there."""
    place = 2
    while data[place : place + 1] == b"\xff":
        if data[place + 1 : place + 2] == SCAN:
            return data[:place]
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return data


def decode_jpeg(data: bytes) -> NDArray[np.uint8] | None:
    """Decode a JPEG to RGB [h, w, 3]; None where anything is odd, so that Pillow may say what it is."""
    fast = turbo()
    assert fast is not None, "jpeg_size has been asked before"
    try:
        decoded: NDArray[Any] = fast.decode_jpeg(data, colorspace="RGB", strict=True)
    except ValueError:
        return None
    return decoded
