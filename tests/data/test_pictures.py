import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anymodal.data.pictures import (
    BadPicture,
    decode_picture,
    read_picture,
    scaled,
    to_image,
    to_pixels,
    to_planes,
    to_rgb,
)
from anymodal.tokens.picture_config import PictureFit, Resample

WHITE = (255, 255, 255)
FILTERS: tuple[Resample, ...] = ("bicubic", "lanczos", "bilinear")


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(size: tuple[int, int], depth: int, colour: int, samples: bytes, transparent: bytes | None = None) -> bytes:
    """Write a PNG by hand: Pillow writes few 16-bit ones. `samples` are one row, or compressed rows."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    extra = b"" if transparent is None else chunk(b"tRNS", transparent)
    body = samples if samples[:1] == b"x" else zlib.compress(b"\0" + samples)
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bomb(side: int) -> bytes:
    packer = zlib.compressobj(9)
    row = bytes(side + 1)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return png((side, side), 8, 0, rows)


def noise(side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def palette(**options: Any) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    return encode(image, **options)


def row16(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


FRAMES: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", (4, 4), "blue")]}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encode(Image.new("RGB", (1, 1), (5, 6, 7))), (5, 6, 7), id="1x1"),
        pytest.param(encode(Image.new("1", (2, 2), 1)), WHITE, id="1 bit"),
        pytest.param(encode(Image.new("L", (8, 8), 77), "JPEG"), (77, 77, 77), id="grey JPEG"),
        pytest.param(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0), id="CMYK"),
        pytest.param(png((1, 1), 16, 0, row16(32896)), (128, 128, 128), id="16-bit grey"),
        pytest.param(png((1, 1), 16, 0, row16(65535)), WHITE, id="16-bit white"),
        pytest.param(png((1, 1), 16, 0, row16(300), row16(300)), WHITE, id="16-bit grey, transparent"),
        pytest.param(png((1, 1), 16, 2, row16(0x1200, 0x3400, 0x5600)), (0x12, 0x34, 0x56), id="16-bit RGB"),
        pytest.param(png((1, 1), 16, 2, row16(9, 8, 7), row16(9, 8, 7)), WHITE, id="16-bit RGB, transparent"),
        pytest.param(png((1, 1), 16, 4, row16(0x1234, 0)), WHITE, id="16-bit LA"),
        pytest.param(png((2, 1), 4, 0, b"\x3f", b"\0\3"), WHITE, id="4-bit grey, transparent"),
        pytest.param(encode(Image.new("LA", (2, 2), (0, 0))), WHITE, id="LA"),
        pytest.param(encode(Image.new("RGBA", (2, 2), (255, 0, 0, 0))), WHITE, id="RGBA, hidden colour"),
        pytest.param(encode(Image.new("RGBA", (2, 2), (255, 0, 0, 128))), (255, 127, 127), id="RGBA, half"),
        pytest.param(palette(), (255, 0, 0), id="palette"),
        pytest.param(palette(transparency=0), WHITE, id="palette, transparent"),
        pytest.param(palette(transparency=b"\x80\xff"), (255, 127, 127), id="palette, half transparent"),
        pytest.param(
            encode(Image.new("RGB", (4, 4), "red"), "WEBP", lossless=True, **FRAMES), (255, 0, 0), id="WebP film"
        ),
        pytest.param(encode(Image.new("RGB", (4, 4), "red"), **FRAMES), (255, 0, 0), id="PNG film"),
    ],
)
def test_decode_picture_gives_golden_pixels(data: bytes, expected: tuple[int, int, int]) -> None:
    image = decode_picture(data)
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == expected
    assert image.info == {}


@pytest.mark.parametrize("orientation", range(10))
def test_decode_picture_applies_exif(orientation: int) -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40).convert("RGB")
    exif = image.getexif()
    exif[0x0112] = orientation
    grey = np.asarray(image)[..., 0]
    flipped, transposed = grey[:, ::-1], grey.T  # the eight of EXIF 2.3, table 6; others mean nothing
    turned = {2: flipped, 3: grey[::-1, ::-1], 4: grey[::-1], 5: transposed, 6: transposed[:, ::-1]}
    turned |= {7: transposed[::-1, ::-1], 8: transposed[::-1]}
    shown = decode_picture(encode(image, exif=exif))
    assert np.array_equal(np.asarray(shown)[..., 0], turned.get(orientation, grey))


def test_decode_picture_survives_broken_exif() -> None:
    data = encode(Image.new("RGB", (4, 4), (1, 2, 3)))
    data = data[:33] + chunk(b"eXIf", b"II*\0\xff\xff\xff\xff") + data[33:]
    assert decode_picture(data).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"no picture at all", "unknown format", id="text"),
        pytest.param(encode(Image.new("RGB", (4, 4)), "GIF"), "unknown format", id="GIF"),
        pytest.param(encode(noise(), "JPEG")[:2000], "truncated", id="JPEG"),
        pytest.param(encode(noise())[:5000], "truncated", id="PNG"),
        pytest.param(encode(noise(), "WEBP")[:2000], "truncated", id="WebP"),
        pytest.param(encode(noise()).replace(b"IHDR", b"IHDX"), "broken", id="no header"),
        pytest.param(bomb(30_000), "too large", id="30,000 squared"),
        pytest.param(
            encode(Image.new("RGB", (16383, 4000)), "WEBP", lossless=True, method=0), "too large", id="WebP bomb"
        ),
        pytest.param(
            png((1, 1), 8, 0, b"\5")[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))), "broken", id="zTXt"
        ),
    ],
)
def test_decode_picture_says_why(data: bytes, reason: str) -> None:
    tracemalloc.start()
    with pytest.raises(BadPicture, match=r"a JPEG, PNG or WebP picture is needed, got .*: ") as caught:
        decode_picture(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.reason == reason
    assert peak < 2**26


def test_read_picture_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2), "red").save(path)
    assert read_picture(path).getpixel((2, 1)) == (255, 0, 0)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"a\.png: a JPEG, PNG or WebP picture is needed, got 50 bytes"):
        read_picture(path)
    with pytest.raises(ValueError, match=r"must exist, .*b\.png does not"):
        read_picture(tmp_path / "b.png")
    with pytest.raises(ValueError, match="is a folder"):
        read_picture(tmp_path)


def test_decode_picture_leaves_pillow_as_it_is() -> None:
    before = Image.MAX_IMAGE_PIXELS
    assert decode_picture(encode(noise(8))).tobytes() == noise(8).tobytes()
    assert before == Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3
    with pytest.raises(BadPicture, match="8x8 pixels where 60"):
        decode_picture(encode(noise(8)), max_pixels=60)


def test_decode_picture_never_raises_anything_else() -> None:
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "WEBP"):
        whole = encode(noise(24), kind)
        for _ in range(100):
            data = bytearray(whole)
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
            try:
                assert decode_picture(bytes(data[: int(rng.integers(len(data)))])).mode == "RGB"
            except BadPicture as error:
                assert error.reason in ("empty", "unknown format", "too large", "truncated", "broken")


def test_to_rgb_refuses_modes_without_a_range() -> None:
    with pytest.raises(ValueError, match="'F'"):
        to_rgb(Image.new("F", (2, 2)))


def test_to_pixels_and_back() -> None:
    image = noise(16)
    pixels = to_pixels(image, 16, 16)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == torch.float32
    assert torch.allclose(pixels, torch.tensor(np.asarray(image)).permute(2, 0, 1) / 127.5 - 1)
    assert to_image(pixels).tobytes() == image.tobytes()


def test_to_pixels_crops_and_pads() -> None:
    wide = Image.new("RGB", (30, 10), "blue")
    wide.paste("red", (10, 0, 20, 10))
    crop = to_pixels(wide, 20, 20)
    assert to_image(crop).getpixel((10, 10)) == (255, 0, 0)
    assert to_image(crop).getpixel((3, 3)) == (255, 0, 0)
    padded = to_image(to_pixels(wide, 30, 30, fit="pad"))
    assert [padded.getpixel((x, y)) for x, y in ((2, 2), (2, 15), (15, 15))] == [WHITE, (0, 0, 255), (255, 0, 0)]
    assert to_pixels(Image.new("RGB", (1000, 1)), 8, 8, fit="pad").shape == (3, 8, 8)
    assert to_pixels(Image.new("RGB", (1, 1000)), 8, 8).shape == (3, 8, 8)


def test_to_pixels_keeps_every_byte_and_takes_a_kind_for_its_fit() -> None:
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    pixels = to_pixels(grey, 16, 16)
    assert pixels.is_contiguous()
    assert torch.equal(pixels[0].flatten(), torch.arange(256).to(torch.float32).div(127.5).sub(1))
    assert [to_image(pixels).getpixel((x, 0)) for x in range(16)] == [(x, x, x) for x in range(16)]
    picture = noise(24).crop((0, 0, 24, 17))
    assert torch.equal(to_pixels(picture, 9, 9), to_pixels(picture, 9, 9, fit=PictureFit(kind="crop")))
    assert torch.equal(to_pixels(picture, 9, 9, fit="pad"), to_pixels(picture, 9, 9, fit=PictureFit(kind="pad")))


def test_to_pixels_scales_pads_and_resamples_as_the_fit_says() -> None:
    dark = PictureFit(kind="pad", pad_colour=(1, 2, 3), scale=0.0078)
    pixels = to_pixels(Image.new("RGB", (2, 4), "white"), 8, 8, fit=dark)
    assert pixels.dtype == torch.float32
    assert torch.allclose(pixels[:, 0, 0], torch.tensor([1.0, 2.0, 3.0]) * 0.0078 - 1, atol=1e-7)
    assert torch.allclose(pixels[:, 4, 4], torch.tensor(255 * 0.0078 - 1), atol=1e-7)
    three = [to_pixels(noise(8), 12, 12, fit=PictureFit(kind="crop", resample=name)) for name in FILTERS]
    assert not any(torch.equal(three[i], three[i - 1]) for i in range(3))


@pytest.mark.parametrize("scale", [1 / 127.5, 1 / 255, 0.0078, 2 / 255 + 1e-9])
def test_bytes_are_scaled_in_double_precision(scale: float) -> None:
    planes = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    expected = [np.float32(np.float32(value * scale) - np.float32(1)) for value in range(256)]
    assert scaled(planes, scale).flatten().tolist() == expected


def test_an_array_has_the_planes_of_its_picture() -> None:
    picture, fit = noise(8), PictureFit(kind="crop")
    for side in (8, 5):
        planes = to_planes(np.asarray(picture), side, side, fit=fit)
        assert planes.dtype == torch.uint8
        assert torch.equal(planes, to_planes(picture, side, side, fit=fit))
    assert planes.is_contiguous()
    assert torch.equal(to_planes(picture, 8, 8, fit=fit), torch.from_numpy(np.array(picture)).permute(2, 0, 1))


def test_to_pixels_and_to_image_refuse() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel"):
        to_pixels(noise(8), 0, 8)
    with pytest.raises(ValueError, match="must be finite"):
        to_image(torch.full((3, 2, 2), float("nan")))
    assert to_image(torch.full((3, 1, 1), 7.0)).getpixel((0, 0)) == WHITE
