import random

import pytest
from PIL import Image, ImageFilter

from anymodal.data.scenes import KINDS, SCENE_NAMES, Placed, Scene, draw_scene, render
from anymodal.scoring.scenes import SceneReader, SceneScores, Verdict, compare, score_scenes

NAMES = SCENE_NAMES[:70]
A_KIND = 30


@pytest.fixture(scope="module")
def reader() -> SceneReader:
    return SceneReader(NAMES)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(0)
    return [draw_scene(rng, kind, NAMES) for kind in KINDS for _ in range(A_KIND)]


def test_rendered_truth_is_right(reader: SceneReader, scenes: list[Scene]) -> None:
    pictures = [render(scene) for scene in scenes]
    assert score_scenes(pictures, scenes, reader).share >= 0.99
    blurred = [picture.filter(ImageFilter.GaussianBlur(1.5)) for picture in pictures]
    assert score_scenes(blurred, scenes, reader).share >= 0.97


def test_shuffled_prompts_are_wrong(reader: SceneReader, scenes: list[Scene]) -> None:
    others = [scenes[i // A_KIND * A_KIND + (i + 1) % A_KIND] for i in range(len(scenes))]  # the next one of its kind
    found = score_scenes([render(scene) for scene in scenes], others, reader)
    assert found.share <= 0.02
    assert set(found.shares) == set(KINDS)


def test_what_a_caption_leaves_open_does_not_count(reader: SceneReader) -> None:
    def put(kind: str, *objects: tuple[str, str], background: str = "white") -> Scene:
        return Scene(kind, background, tuple(Placed(*each) for each in objects))

    wanted = put("two", ("dog", "left"), ("rose", "right"))
    for cells in (("right", "left"), ("top", "bottom"), ("top left", "bottom right")):
        drawn = render(put("two", ("dog", cells[0]), ("rose", cells[1])))
        assert compare(reader.read(drawn), wanted).right, cells
    placed = put("position", ("dog", "left"), ("rose", "right"))
    verdict = compare(reader.read(render(put("position", ("dog", "right"), ("rose", "left")))), placed)
    assert (verdict.position, verdict.concepts, verdict.count, verdict.right) == (False, True, True, False)


def test_every_part_is_judged(reader: SceneReader) -> None:
    wanted = Scene("binding", "white", (Placed("dog", "left", "red"), Placed("rose", "right", "blue")))
    swapped = Scene("binding", "white", (Placed("dog", "left", "blue"), Placed("rose", "right", "red")))
    assert compare(reader.read(render(swapped)), wanted).wrong == ("tiles",)
    grey = Scene("binding", "grey", wanted.objects)
    verdict = compare(reader.read(render(grey)), wanted)
    assert (verdict.background, verdict.tiles) == (False, True)
    three = Scene("counting", "white", tuple(Placed("dog", cell) for cell in ("top left", "top right", "bottom left")))
    two = Scene("counting", "white", (Placed("dog", "left"), Placed("dog", "right")))
    verdict = compare(reader.read(render(two)), three)
    assert (verdict.concepts, verdict.count) == (True, False)


def test_pictures_of_other_sizes_and_of_nothing_are_read(reader: SceneReader) -> None:
    large = render(Scene("one", "white", (Placed("dog", "centre"),), 128))
    assert [thing.name for thing in reader.read(large).objects] == ["dog"]
    assert reader.read(Image.new("RGB", (64, 64), "white")).objects == ()


def test_mistakes_are_named(reader: SceneReader) -> None:
    with pytest.raises(ValueError, match="0 pictures and 1 scenes"):
        score_scenes([], [Scene("one", "white", (Placed("dog", "centre"),))], reader)
    with pytest.raises(ValueError, match="got none"):
        SceneReader([])
    assert SceneScores((), ()).share == SceneScores((), ()).mean == 0.0


def test_the_mean_weighs_kinds_alike() -> None:
    good, bad = (Verdict(concepts=ok, count=ok, tiles=ok, position=ok, background=ok) for ok in (True, False))
    scores = SceneScores(("one", "one", "one", "two"), (good, good, good, bad))
    assert (scores.share, scores.mean) == (0.75, 0.5)
