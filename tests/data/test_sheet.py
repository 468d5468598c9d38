from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anymodal.data.sheet import LINE_HEIGHT, MARGIN, contact_sheet, save_growth


def test_pictures_stand_row_by_row() -> None:
    colours = ["red", "green", "blue"]
    sheet = contact_sheet([Image.new("RGB", (6, 4), colour) for colour in colours], columns=2, scale=3)
    assert sheet.size == (2 * 18 + 3 * MARGIN, 2 * 12 + 3 * MARGIN)
    assert sheet.getpixel((MARGIN, MARGIN)) == (255, 0, 0)
    assert sheet.getpixel((2 * MARGIN + 18, MARGIN)) == (0, 128, 0)
    assert sheet.getpixel((MARGIN, 2 * MARGIN + 12)) == (0, 0, 255)
    assert sheet.getpixel((0, 0)) == (255, 255, 255)


def test_captions_wrap_below_their_picture() -> None:
    image = Image.new("RGB", (40, 8), "red")
    sheet = contact_sheet([image, image], captions=["a rather long caption", "short"])
    band = sheet.height - 8 - 2 * MARGIN
    assert band % LINE_HEIGHT == 0
    assert band >= 2 * LINE_HEIGHT
    below = sheet.crop((0, MARGIN + 8, sheet.width, sheet.height)).convert("L")
    assert int(np.asarray(below).min()) < 64


def test_a_sheet_needs_a_picture() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])


def test_growth_is_a_moving_picture(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("grey", "red")]
    save_growth(frames, tmp_path / "growth.gif", scale=2)
    with Image.open(tmp_path / "growth.gif") as moving:
        assert moving.size == (8, 8)
        assert getattr(moving, "n_frames", 1) == 2
    with pytest.raises(ValueError, match="at least one frame"):
        save_growth([], tmp_path / "none.gif")
