"""The fast way and Pillow must agree on every byte: batches may not depend on an extra."""

import io
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anymodal.data import jpeg
from anymodal.data.jpeg import decode_jpeg, jpeg_size, turbo
from anymodal.data.pictures import BadPicture, decode_picture

pytest.importorskip("simplejpeg")


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * height)
    waves = np.sin(np.linspace(0, 9, height))[:, None, None] * np.cos(np.linspace(0, 7, width))[None, :, None]
    values = 128 + 90 * waves * np.array([1, -0.5, 0.7]) + rng.normal(0, 14, (height, width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg_of(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Decode as a machine without simplejpeg does."""

    def decode(data: bytes) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(jpeg, "turbo", lambda: None)
            assert jpeg_size(data) is None
            return decode_picture(data)

    yield decode


@pytest.mark.parametrize("options", [
    {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    for quality in (35, 90, 95) for subsampling in (0, 1, 2) for progressive in (False, True)
])  # fmt: skip
@pytest.mark.parametrize("size", [(64, 64), (251, 197), (1, 1), (17, 8)])
def test_pixels_are_those_of_pillow(options: dict[str, Any], size: tuple[int, int], slow: Any) -> None:
    for mode in ("RGB", "L"):
        data = jpeg_of(picture(*size, mode), **options)
        assert jpeg_size(data) == size
        fast = decode_jpeg(data)
        assert fast is not None
        assert fast.shape == (size[1], size[0], 3)
        assert fast.tobytes() == slow(data).tobytes() == decode_picture(data).tobytes()


def test_what_is_not_plain_is_left_to_pillow(slow: Any) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    for data in (
        jpeg_of(picture(20, 10), exif=turned),
        jpeg_of(picture(20, 10), xmp=b'<x:xmpmeta tiff:Orientation="6"/>'),
        jpeg_of(picture(20, 10, "CMYK")),
    ):
        assert jpeg_size(data) is None
        assert decode_picture(data).tobytes() == slow(data).tobytes()
    assert decode_picture(jpeg_of(picture(20, 10), exif=turned)).size == (10, 20)
    assert jpeg_size(b"") is None
    assert jpeg_size(b"\xff\xd8\xff") is None


def test_broken_jpegs_are_judged_by_pillow(slow: Any) -> None:
    whole = jpeg_of(picture(40, 30), quality=80)
    rng = random.Random(0)
    for _ in range(150):
        data = bytearray(whole[: rng.randrange(3, len(whole))] if rng.random() < 0.5 else whole)
        data[rng.randrange(2, len(data))] ^= 1 << rng.randrange(8)
        found = []
        for decode in (decode_picture, slow):
            try:
                found.append(decode(bytes(data)).tobytes())
            except BadPicture as error:
                found.append(error.reason.encode())
        assert found[0] == found[1]
    with pytest.raises(BadPicture, match="pixels where 100 are allowed"):
        decode_picture(whole, max_pixels=100)


def test_the_extra_is_found() -> None:
    assert turbo() is turbo() is not None
