"""Plain JPEGs by simplejpeg where it is installed: half again as fast as Pillow, and the same pixels."""

from functools import cache
from struct import Struct
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

START = b"\xff\xd8\xff"
SEGMENT = Struct(">BBH")  # a mark, the kind of the segment, its length
MARK, SCAN = 0xFF, 0xDA
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
    if fast is None or not data.startswith(START):
        return None
    head = _head(data)
    if any(word in head for word in TURNED):
        return None
    try:
        height, width, colours, _ = fast.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colours in PLAIN else None


def _head(data: bytes) -> bytes:
    """Return what stands before the scan, which alone is searched; all where markers do not lead there."""
    place = 2
    while place + SEGMENT.size <= len(data):
        mark, kind, length = SEGMENT.unpack_from(data, place)
        if mark != MARK:
            break
        if kind == SCAN:
            return data[:place]
        place += 2 + length
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
