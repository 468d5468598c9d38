from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anymodal.pipeline import Pipeline
from anymodal.scoring.public.drawing import BATCH, Wanted, draw_missing, grid


class Painter(Pipeline):
    """Paint a square whose red is the seed and whose green is the number within the prompt."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []

    def generate_image(self, prompt: Any, *, num_images: int = 1, seed: Any = 0, **_: Any) -> list[Image.Image]:
        self.calls.append((len(prompt), num_images, seed))
        return [Image.new("RGB", (4, 4), (seed, i, 0)) for _ in prompt for i in range(num_images)]


def test_what_is_there_is_not_drawn_again(tmp_path: Path) -> None:
    wanted = [Wanted(f"{i}", tmp_path / f"{i}" / "a.png", seed=i // 2) for i in range(4)]
    first, second = Painter(), Painter()
    draw_missing(first, wanted[:1])
    draw_missing(second, wanted)
    assert (first.calls, second.calls) == ([(1, 1, 0)], [(1, 1, 0), (2, 1, 1)])
    assert [Image.open(each.path).getpixel((0, 0)) for each in wanted] == [(i // 2, 0, 0) for i in range(4)]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.png"] * 4


def test_calls_have_one_seed_and_a_bound(tmp_path: Path) -> None:
    pipe = Painter()
    draw_missing(pipe, [Wanted("a", tmp_path / f"{i}.png", 7, 4) for i in range(BATCH // 4 + 1)])
    assert pipe.calls == [(BATCH // 4, 4, 7), (1, 4, 7)]


def test_a_grid_is_row_by_row(tmp_path: Path) -> None:
    draw_missing(Painter(), [Wanted("a", tmp_path / "a.png", 0, 4)])
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (8, 8)
        assert [image.getpixel(place) for place in ((0, 0), (4, 0), (0, 4), (4, 4))] == [(0, i, 0) for i in range(4)]
    assert grid([Image.new("RGB", (4, 4))]).size == (4, 4)


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_missing(Painter(), [Wanted("a", tmp_path / "a.png", 0)])
    assert list(tmp_path.iterdir()) == []
