from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anymodal.pipeline import Pipeline
from anymodal.scoring.public.dpg import draw_dpg, picture_width, score_dpg

RESULTS = """pictures/a, b.png, 0.5, 1.0, 0.75
pictures/2.png, 0.25, 0.25, 0.25
Model: pictures
L1 category scores:
\tentity: 50.0
\tattribute: 62.5
L2 category scores:
\tattribute - color: 62.5
\tentity - whole: 50.0
Image path: pictures
Save results to: results.txt
DPG-Bench score: 50.0
"""


def test_prompts_become_grids(tmp_path: Path, toy: Any) -> None:
    data = tmp_path / "prompts"
    data.mkdir()
    for name in ("1", "2", "3"):
        (data / f"{name}.txt").write_text(f"a dog and {name} apples\n")
    (path, _) = draw_dpg(Pipeline(toy.parts()), data, tmp_path / "out", limit=2)
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["1.png", "2.png"]
    with Image.open(path) as image:
        assert image.size == (32, 32)
    assert picture_width(path) == 16
    (data / "1.txt").write_text("")
    with pytest.raises(ValueError, match=r"1.txt must hold a prompt"):
        draw_dpg(Pipeline(toy.parts()), data, tmp_path / "out")
    with pytest.raises(ValueError, match=r"there must be prompts \*.txt"):
        draw_dpg(Pipeline(toy.parts()), tmp_path, tmp_path / "out")


def test_results_by_hand(tmp_path: Path) -> None:
    (tmp_path / "results.txt").write_text(RESULTS)
    scores = score_dpg(tmp_path / "results.txt")
    assert [(each.name, each.value, each.count) for each in scores] == [
        ("DPG-Bench", (0.75 + 0.25) / 2, 2), ("entity", 0.5, 2), ("attribute", 0.625, 2),
        ("attribute - color", 0.625, 2), ("entity - whole", 0.5, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(("lines", "message"), [(0, "must hold lines"), (2, "must end in scores by category")])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, lines: int, message: str) -> None:
    (tmp_path / "results.txt").write_text("\n".join(RESULTS.splitlines()[:lines]))
    with pytest.raises(ValueError, match=message):
        score_dpg(tmp_path / "results.txt")
