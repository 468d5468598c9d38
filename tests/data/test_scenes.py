import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest

from anymodal.data.emoji import Split
from anymodal.data.pictures import decode_picture
from anymodal.data.scenes import (
    COLOURS,
    KINDS,
    SCENE_NAMES,
    Placed,
    Scene,
    captions,
    combinations,
    draw_scene,
    is_held_out,
    render,
    scene_samples,
    split_of,
)


def scene_of(members: dict[str, bytes]) -> Scene:
    return Scene.from_truth(json.loads(members["json"])["truth"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "held-out"])
def test_scene_samples_hold_what_they_say(kind: str, split: Split) -> None:
    for sample in scene_samples(split, count=8, seed=3, concepts=70, kinds=[kind]):
        scene = scene_of(dict(sample.members))
        about = json.loads(sample.members["json"])
        assert scene.kind == kind
        assert split_of(scene) == split
        assert sample.members["txt"].decode() in about["captions"] == captions(scene)
        assert np.array_equal(np.asarray(decode_picture(sample.members["png"])), np.asarray(render(scene)))
        assert {thing.name for thing in scene.objects} <= set(SCENE_NAMES[:70])


def test_scene_samples_depend_on_seed_split_and_index_alone() -> None:
    first = list(scene_samples("train", count=12, seed=0, concepts=70))
    longer = list(scene_samples("train", count=20, seed=0, concepts=70))
    other = list(scene_samples("train", count=12, seed=1, concepts=70))
    assert longer[:12] == first
    assert len({sample.members["png"] for sample in [*longer, *other]}) > 25
    assert first[0].key == "scene-train-0-0000000"


def test_split_is_by_combination() -> None:
    scene = Scene("binding", "blue", (Placed("dog", "left", "red"), Placed("cat", "right", "pink")))
    assert combinations(scene) == [
        "pair cat|dog",
        "tile dog|red",
        "tile cat|pink",
        "canvas cat|blue",
        "canvas dog|blue",
    ]
    three = Scene("counting", "white", tuple(Placed("dog", cell) for cell in ("top left", "top right", "bottom left")))
    assert combinations(three) == ["count dog|3"]
    pairs = [f"pair {first}|{second}" for first, second in itertools.combinations(sorted(SCENE_NAMES), 2)]
    assert 0.09 < sum(map(is_held_out, pairs)) / len(pairs) < 0.11
    assert is_held_out("pair banana|cat")  # golden: the hash must not move
    assert not is_held_out("pair cat|dog")


def test_splits_share_no_combination_that_is_held_out() -> None:
    kept = {
        found
        for sample in scene_samples("train", count=300, seed=0, concepts=20)
        for found in combinations(scene_of(dict(sample.members)))
    }
    assert len(kept) > 200
    assert not any(map(is_held_out, kept))


def test_draw_scene_counts() -> None:
    rng = random.Random(0)
    totals = Counter(len(draw_scene(rng, "counting", SCENE_NAMES).objects) for _ in range(300))
    assert set(totals) == {2, 3, 4}
    assert min(totals.values()) > 60


def test_all_kinds_come_equally_often() -> None:
    kinds = Counter(scene_of(dict(sample.members)).kind for sample in scene_samples("train", count=600, seed=5))
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concepts": ["dog", "unheard of"]}, "unheard of"),
        ({"concepts": 100_000}, "100000"),
        ({"kinds": ["four"]}, "four"),
        ({"concepts": ["dog"], "kinds": ["two"]}, "two concepts"),
        ({"kinds": []}, "got none"),
    ],
)
def test_scene_samples_refuse(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(scene_samples(**{"split": "train", "count": 1, "seed": 0, **options}))  # type: ignore[arg-type]


def test_scene_samples_refuse_a_split_that_cannot_be() -> None:
    colours = [colour for colour in COLOURS if colour != "white"]
    plain = [name for name in SCENE_NAMES if not any(is_held_out(f"canvas {name}|{colour}") for colour in colours)]
    with pytest.raises(ValueError, match="name more of them"):
        next(scene_samples("held-out", count=1, seed=0, concepts=plain[:1], kinds=["one"]))
