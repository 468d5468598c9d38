from typing import Any

import pytest

from anymodal.configuration import from_dict, to_dict
from anymodal.tokens.picture_config import PictureFit


def test_a_fit_survives_plain_data() -> None:
    janus = PictureFit(kind="resize-pad", pad_colour=(127, 127, 127), min_side=14)
    assert from_dict(PictureFit, to_dict(janus)) == janus
    chameleon = PictureFit(kind="resize-crop", resample="lanczos", scale=0.0078)
    assert from_dict(PictureFit, to_dict(chameleon)) == chameleon
    emu3 = from_dict(PictureFit, {"kind": "area", "min_pixels": 64, "max_pixels": 256, "max_ratio": 5})
    assert emu3 == PictureFit(kind="area", min_pixels=64, max_pixels=256, max_ratio=5.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "pad", "pad_colour": (0, 0, 256)},
            r"pad_colour must be three numbers in \[0, 255\], got \(0, 0, 256",
        ),
        ({"kind": "crop", "scale": 0.0}, "scale must be above 0 and finite, got 0.0"),
        ({"kind": "crop", "scale": float("nan")}, "scale must be above 0 and finite, got nan"),
        ({"kind": "resize-pad", "min_side": 0}, "min_side must be at least 1 pixel, got 0"),
        ({"kind": "area", "min_pixels": 0}, r"min_pixels must be in \[1, max_pixels\], got 0 and"),
        ({"kind": "area", "min_pixels": 9, "max_pixels": 8}, r"min_pixels must be in \[1, max_pixels\], got 9 and 8"),
        ({"kind": "area", "max_ratio": 0.5}, "max_ratio must be at least 1 and finite, got 0.5"),
        (
            {"kind": "crop", "pad_colour": (0, 0, 0)},
            "pad_colour belongs to 'pad' and 'resize-pad', got .* leave it out",
        ),
        ({"kind": "pad", "min_side": 14}, "min_side belongs to 'resize-pad', got 14 with kind 'pad'; leave it out"),
        ({"kind": "resize-crop", "max_pixels": 2**30}, "max_pixels belongs to 'area'"),
    ],
)
def test_a_fit_refuses_what_fits_nothing_or_is_not_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PictureFit(**options)


@pytest.mark.parametrize(("name", "value"), [("kind", "squash"), ("resample", "nearest")])
def test_unknown_words_are_refused_without_the_type_check_of_the_tests(name: str, value: str) -> None:
    fit = PictureFit(kind="crop")
    object.__setattr__(fit, name, value)
    with pytest.raises(ValueError, match=f"{name} of a picture fit must be one of '.*', got '{value}'; choose one"):
        fit.__post_init__()
