import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anymodal.data.fitting import fit_picture, fitted_size
from anymodal.data.pictures import to_pixels, to_rgb
from anymodal.tokens.picture_config import PictureFit

SIDE = 32
HALF = [0.5, 0.5, 0.5]
RAW = {"do_rescale": False, "do_normalize": False}
# (height, width): the size itself, squares, landscapes, portraits, odd ones, tiny ones, strips
SIZES = [(32, 32), (64, 64), (20, 20), (257, 257), (40, 52), (33, 100), (32, 51), (90, 37), (71, 32), (31, 47)]
SIZES += [(257, 199), (99, 333), (15, 11), (1, 1), (2, 1), (1, 9), (5, 3), (7, 200), (400, 6)]
RGBA_SIZES = [(40, 52), (90, 37), (32, 32), (5, 3)]
MODES = ["L", "LA", "P", "RGBA"]

Fits = dict[str, PictureFit]
FITS: Fits = {
    "chameleon": PictureFit(kind="resize-crop", resample="lanczos", scale=0.0078),
    "janus draws": PictureFit(kind="resize-crop"),
    "janus looks": PictureFit(kind="resize-pad", pad_colour=(127, 127, 127), min_side=14),
    "pad": PictureFit(kind="pad"),
}


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Noise over a gradient, so that neither edges nor rounding can hide; every second alpha is partial."""
    random = np.random.default_rng(height * 1000 + width)
    values = random.integers(0, 120, (height, width, 4)) + np.linspace(0, 135, width).astype(int)[None, :, None]
    image = Image.fromarray(values.astype(np.uint8))
    return image if mode == "RGBA" else image.convert(mode)


def peer(name: str, side: int = SIDE) -> Any:
    """Build an image processor of transformers; what Janus draws has none there but cuts as Chameleon's does."""
    from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    square = {"height": side, "width": side}
    cut: dict[str, Any] = {"size": {"shortest_edge": side}, "crop_size": square}
    half: dict[str, Any] = {"image_mean": HALF, "image_std": HALF}
    if name == "chameleon":
        return ChameleonImageProcessorPil(**cut)
    if name == "janus draws":
        resample = Image.Resampling.BICUBIC
        return ChameleonImageProcessorPil(**cut, **half, resample=resample, rescale_factor=1 / 255)
    if name == "janus looks":
        return JanusImageProcessorPil(size=square, min_size=14, do_convert_rgb=True, **half)
    white = JanusImageProcessorPil(size=square, min_size=1, image_mean=[1.0] * 3, image_std=[1.0] * 3)
    white.rescale_factor = 2 / 255
    return white


def emu3(least: int, most: int, factor: int) -> Any:
    from transformers import Emu3ImageProcessor

    pixels: dict[str, Any] = {"min_pixels": least, "max_pixels": most, "spatial_factor": factor}
    return Emu3ImageProcessor(**pixels, image_mean=HALF, image_std=HALF)


def read(processor: Any, image: Image.Image, **options: Any) -> Any:
    return np.asarray(processor(images=image, return_tensors="np", **options)["pixel_values"][0])


def assert_equal(image: Image.Image, size: tuple[int, int], fit: PictureFit, processor: Any) -> None:
    theirs = read(processor, image, **RAW)
    ours = np.asarray(fit_picture(to_rgb(image), *size, fit)).transpose(2, 0, 1)
    assert theirs.shape == (3, *size)
    assert np.array_equal(ours, theirs)
    pixels = to_pixels(image, *size, fit=fit)
    assert pixels.dtype == torch.float32
    assert np.abs(pixels.numpy() - read(processor, image)).max() <= 1e-6


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("side", [SIDE, 45])
def test_fit_picture_equals_the_processors_of_transformers(name: str, side: int) -> None:
    processor = peer(name, side)
    for height, width in SIZES:
        assert_equal(picture(height, width), (side, side), FITS[name], processor)
    assert "torchvision" not in sys.modules


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["chameleon", "janus looks"])
def test_other_modes_equal_the_processors_of_transformers(name: str, mode: str) -> None:
    for height, width in RGBA_SIZES:
        assert_equal(picture(height, width, mode), (SIDE, SIDE), FITS[name], peer(name))


def test_fit_picture_equals_the_processor_of_emu3() -> None:
    seen = set()
    for height, width in [(32, 32), (40, 52), (64, 64), (90, 37), (31, 47), (257, 199), (2, 5), (5, 2), (400, 6)]:
        for least, most, factor in [(32 * 32, 64 * 64, 2), (32 * 32, 64 * 64, 8), (1, 90 * 90, 7)]:
            fit = PictureFit(kind="area", min_pixels=least, max_pixels=most)
            image = picture(height, width)
            size = fitted_size((height, width), fit, factor)
            assert_equal(image, size, fit, emu3(least, most, factor))
            seen.add(size)
    assert len(seen) > 15
    fit = PictureFit(kind="area", min_pixels=32 * 32, max_pixels=64 * 64)
    image = picture(40, 52, "RGBA")
    assert_equal(image, fitted_size((40, 52), fit, 8), fit, emu3(32 * 32, 64 * 64, 8))


@pytest.mark.parametrize("factor", [1, 2, 7, 8, 28])
@pytest.mark.parametrize("limits", [(1, 900), (400, 400), (1000, 5000), (512 * 512, 1024 * 1024)])
def test_fitted_size_equals_smart_resize(factor: int, limits: tuple[int, int]) -> None:
    from transformers.models.emu3.image_processing_emu3 import smart_resize

    least, most = limits
    fit = PictureFit(kind="area", min_pixels=least, max_pixels=most)
    sides = [*range(1, 40), 63, 64, 65, 199, 200, 201, 777, 1000, 1024, 4001]
    for height in sides:
        for width in sides:
            size = (height, width)
            if max(size) / min(size) > 200:
                with pytest.raises(ValueError, match="absolute aspect ratio"):
                    smart_resize(*size, factor, least, most)
                with pytest.raises(ValueError, match=r"at most 200 times the short one, got .* crop the picture first"):
                    fitted_size(size, fit, factor)
            else:
                assert fitted_size(size, fit, factor) == smart_resize(*size, factor, least, most), size


def test_fitted_size_refuses() -> None:
    area = PictureFit(kind="area", max_ratio=5.0)
    assert fitted_size((100, 500), area, 8) == (232, 1152)
    with pytest.raises(ValueError, match="at most 5 times the short one, got 100x501 pixels"):
        fitted_size((100, 501), area, 8)
    with pytest.raises(ValueError, match="only kind 'area' chooses a size, got 'crop'"):
        fitted_size((8, 8), PictureFit(kind="crop"), 8)
    with pytest.raises(ValueError, match=r"at least 1 pixel, got \(8, 8\) and 0"):
        fitted_size((8, 8), area, 0)


@pytest.mark.parametrize("size", [(20, 31), (31, 20), (8, 40)])
@pytest.mark.parametrize("name", ["janus draws", "janus looks"])
def test_sizes_need_not_be_square(name: str, size: tuple[int, int]) -> None:
    fit = PictureFit(kind="resize-pad") if name == "janus looks" else FITS[name]
    for height, width in SIZES:
        fitted = fit_picture(picture(height, width), *size, fit)
        assert (fitted.height, fitted.width, fitted.mode) == (*size, "RGB")
    blue = fit_picture(Image.new("RGB", (50, 50), "blue"), *size, fit)
    middle = (size[1] // 2, size[0] // 2)
    assert blue.getpixel(middle) == (0, 0, 255)
    assert blue.getpixel((0, 0)) == ((0, 0, 255) if fit.kind == "resize-crop" else (255, 255, 255))


def test_crop_is_resize_crop_where_no_side_is_rounded() -> None:
    for size in ((40, 80), (120, 20), (60, 120)):
        cuts = [fit_picture(picture(*size), 20, 20, PictureFit(kind=kind)) for kind in ("crop", "resize-crop")]
        assert cuts[0].tobytes() == cuts[1].tobytes()


def test_a_strip_is_cut_before_it_is_resized() -> None:
    # resized whole it would take 50 GB
    strip = Image.fromarray(np.random.default_rng(0).integers(0, 256, (65_535, 1, 3), dtype=np.uint8))
    cuts = [fit_picture(strip, 512, 512, PictureFit(kind=kind)) for kind in ("crop", "resize-crop")]
    assert cuts[0].tobytes() == cuts[1].tobytes()


def test_fit_picture_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel, got 0 and 8"):
        fit_picture(picture(4, 4), 0, 8, FITS["pad"])
    with pytest.raises(ValueError, match="at least min_side 14, got 16 and 8: name a larger size or lower min_side"):
        fit_picture(picture(4, 4), 16, 8, FITS["janus looks"])
