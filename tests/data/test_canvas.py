import numpy as np
import pytest

from anymodal.data.canvas import CELLS, COLOURS, Placed, Scene, fitted, render, stands_out


def test_cells_lie_on_the_token_grid() -> None:
    assert all(value % 8 == 0 for cell in CELLS.values() for value in cell)
    assert all(left + side <= 64 and top + side <= 64 for left, top, side in CELLS.values())


def test_colours_are_clearly_different() -> None:
    values = np.array(list(COLOURS.values()), dtype=float)
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1)
    assert distances[~np.eye(len(values), dtype=bool)].min() > 80


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("size", [32, 64, 128])
def test_render_keeps_objects_inside_their_tile(cell: str, size: int) -> None:
    scene = Scene("colours", "blue", (Placed("red apple", cell, "white"),), size)
    pixels = np.asarray(render(scene))
    left, top, side = (value * size // 64 for value in CELLS[cell])
    tile = pixels[top : top + side, left : left + side]
    outside = np.ones((size, size), dtype=bool)
    outside[top : top + side, left : left + side] = False
    assert pixels.shape == (size, size, 3)
    assert (pixels[outside] == COLOURS["blue"]).all()
    border = np.concatenate([tile[0], tile[-1], tile[:, 0], tile[:, -1]])
    assert (border == COLOURS["white"]).all(), "a margin is clear"
    inner = tile[side // 4 : -side // 4, side // 4 : -side // 4].reshape(-1, 3).astype(int)
    assert (inner[:, 0] - inner[:, 2] > 60).mean() > 0.8, "an apple is red"


def test_render_refuses_odd_sizes() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        render(Scene("one", "white", (Placed("dog", "centre"),), 50))


def test_fitted_fills_its_square() -> None:
    for name in ("car", "giraffe", "star"):
        box = fitted(name, 28).getbbox()
        assert box is not None
        left, top, right, bottom = box
        assert max(right - left, bottom - top) == 28
        assert abs(left - (28 - right)) <= 1
        assert abs(top - (28 - bottom)) <= 1


def test_stands_out() -> None:
    assert not stands_out("red apple", "red")
    assert not stands_out("tree", "green")
    assert stands_out("red apple", "white")


def test_truth_round_trip() -> None:
    scene = Scene("binding", "pink", (Placed("dog", "left", "red"), Placed("cat", "right", "blue")))
    assert Scene.from_truth(scene.truth()) == scene
