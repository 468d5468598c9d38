from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anymodal.pipeline import Pipeline
from anymodal.scoring.showing import drawings


def test_prompts_are_drawn_as_one_picture(toy: Any, tmp_path: Path) -> None:
    show = drawings(Pipeline(toy.parts()), ["a dog", "a cat"], tmp_path / "samples")
    show(3)
    show(12)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-00000003.png", "step-00000012.png"]
    with Image.open(tmp_path / "samples" / "step-00000012.png") as sheet:
        assert sheet.width > 2 * 2 * 16
        assert sheet.height > 2 * 16


def test_nothing_to_draw_is_refused(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        drawings(Pipeline(toy.parts()), [], tmp_path)(1)
