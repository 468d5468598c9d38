import numpy as np
import pytest
from PIL import Image

from anymodal.scoring.failures import SIDE, Failure, failure_sheet

RED, BLUE = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
FAILURE = Failure("a dog on a red tile", RED, BLUE, "concepts: a cat")


def colours(sheet: Image.Image) -> tuple[int, int]:
    pixels = np.asarray(sheet)
    return (pixels == (255, 0, 0)).all(-1).sum(), (pixels == (0, 0, 255)).all(-1).sum()


def test_truth_and_drawing_stand_side_by_side() -> None:
    sheet = failure_sheet({"scenes": [FAILURE] * 5})
    assert colours(sheet) == (5 * SIDE**2, 5 * SIDE**2)
    assert sheet.getpixel((8, 40)) == (255, 0, 0)
    assert sheet.getpixel((8 + SIDE, 40)) == (0, 0, 255)


def test_tables_are_cut_and_may_be_empty() -> None:
    sheet = failure_sheet({"names": [], "scenes": [FAILURE] * 5}, most=2)
    assert colours(sheet) == (2 * SIDE**2, 2 * SIDE**2)
    assert colours(failure_sheet({"names": []})) == (0, 0)
    with pytest.raises(ValueError, match="at least one table"):
        failure_sheet({})
