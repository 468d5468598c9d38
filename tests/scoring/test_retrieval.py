import numpy as np
import pytest
from PIL import Image, ImageFilter

from anymodal.data.emoji import scene_names
from anymodal.scoring.retrieval import Retrieval, nearest_by_features, nearest_by_pixels, rendered, retrieve

NAMES = scene_names()[:12]


def test_blurred_truth_is_found_by_both() -> None:
    truth = rendered(NAMES)
    assert {image.size for image in truth.values()} == {(64, 64)}
    blurred = [image.filter(ImageFilter.GaussianBlur(1.5)) for image in truth.values()]
    for by in ("pixels", "features"):
        found = retrieve(blurred, list(truth), truth, by=by)
        assert found.share == 1.0, by
        assert found.chance == pytest.approx(1 / 12)


def test_pixels_agree_with_a_plain_loop() -> None:
    truth = rendered(NAMES)
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    drawings = [Image.fromarray(array) for array in noise]
    arrays = {name: np.asarray(image, dtype=np.float64) for name, image in truth.items()}
    wanted = [min(arrays, key=lambda name: float(((arrays[name] - a) ** 2).mean())) for a in noise.astype(np.float64)]
    assert nearest_by_pixels(drawings, truth) == wanted
    assert nearest_by_pixels([], truth) == nearest_by_features([], truth) == []


def test_share_counts_the_right_ones() -> None:
    assert Retrieval(("dog", "cat", "bee"), ("dog", "bee", "bee"), 3).right == (True, False, True)


def test_mistakes_are_named() -> None:
    truth = rendered(NAMES[:2])
    picture = next(iter(truth.values()))
    with pytest.raises(ValueError, match="1 drawings and 2 names"):
        retrieve([picture], NAMES[:2], truth)
    with pytest.raises(ValueError, match="'zebra' is not"):
        retrieve([picture], ["zebra"], truth)
    with pytest.raises(ValueError, match="'pixels' or 'features'"):
        retrieve([picture], NAMES[:1], truth, by="taste")
