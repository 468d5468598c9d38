import numpy as np
import pytest
from PIL import Image, ImageFilter

from anymodal.data.emoji import scene_names
from anymodal.scoring.retrieval import Gallery, Retrieval, rendered

NAMES = scene_names()[:12]


def test_blurred_truth_is_found_by_both() -> None:
    truth = rendered(NAMES)
    assert {image.size for image in truth.values()} == {(64, 64)}
    blurred = [image.filter(ImageFilter.GaussianBlur(1.5)) for image in truth.values()]
    for by in ("pixels", "features"):
        found = Gallery(truth, by=by).retrieve(blurred, list(truth))
        assert found.share == 1.0, by
        assert found.chance == pytest.approx(1 / 12)


def test_pixels_agree_with_a_plain_loop() -> None:
    truth = rendered(NAMES)
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    drawings = [Image.fromarray(array) for array in noise]
    arrays = {name: np.asarray(image, dtype=np.float64) for name, image in truth.items()}
    wanted = [min(arrays, key=lambda name: float(((arrays[name] - a) ** 2).mean())) for a in noise.astype(np.float64)]
    gallery = Gallery(truth)
    assert gallery.nearest(drawings) == wanted
    assert gallery.nearest([]) == []
    few = [name for name in NAMES if name not in wanted]
    least = [min(few, key=lambda name: float(((arrays[name] - a) ** 2).mean())) for a in noise.astype(np.float64)]
    assert gallery.nearest(drawings, few) == least
    assert gallery.retrieve(drawings, least, few).chance == 1 / len(few)


def test_share_counts_the_right_ones() -> None:
    assert Retrieval(("dog", "cat", "bee"), ("dog", "bee", "bee"), 3).right == (True, False, True)


def test_mistakes_are_named() -> None:
    truth = rendered(NAMES[:2])
    picture = next(iter(truth.values()))
    gallery = Gallery(truth)
    with pytest.raises(ValueError, match="1 drawings and 2 names"):
        gallery.retrieve([picture], NAMES[:2])
    for wrong in (["zebra"], None), (NAMES[:1], ["zebra"]):
        with pytest.raises(ValueError, match="'zebra' is not"):
            gallery.retrieve([picture], *wrong)
    with pytest.raises(ValueError, match="'pixels' or 'features'"):
        Gallery(truth, by="taste")
    with pytest.raises(ValueError, match="needs candidates"):
        Gallery({})
