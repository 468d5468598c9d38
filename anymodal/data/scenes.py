"""Scenes: one to four emoji composed on a canvas, with captions, questions and the ground truth of each.

Endless and seeded: sample i is a function of (seed, split, i) and the options. The splits are by *combination*: see
`combinations` and `is_held_out`.
"""

import functools
import io
import itertools
import json
import random
from collections.abc import Iterator, Sequence

from anymodal.data.canvas import CELLS, COLOURS, CORNERS, SIDES, Placed, Scene, render, stands_out
from anymodal.data.emoji import Split, scene_names, stable_percent
from anymodal.data.scene_text import captions, questions
from anymodal.data.shards import Sample

__all__ = [
    "CELLS", "COLOURS", "KINDS", "SCENE_NAMES", "Placed", "Scene", "captions", "combinations", "draw_scene",
    "draw_of_split", "is_held_out", "questions", "render", "scene_samples", "split_of", "stands_out",
]  # fmt: skip

SCENE_NAMES = scene_names()
KINDS = ("one", "two", "counting", "colours", "position", "binding")  # the six of GenEval (arXiv:2310.11513)
HELD_OUT_PERCENT = 10
PLAIN_PERCENT = 60  # how many canvases are white
MAX_TRIES = 20_000


def combinations(scene: Scene) -> list[str]:
    """List what a scene combines: concepts in pairs, and each with its count above one, its tile, its canvas."""
    names = [thing.name for thing in scene.objects]
    found = [f"pair {first}|{second}" for first, second in itertools.combinations(sorted(set(names)), 2)]
    found += [f"count {name}|{names.count(name)}" for name in sorted(set(names)) if names.count(name) > 1]
    found += [f"tile {thing.name}|{thing.tile}" for thing in scene.objects if thing.tile is not None]
    if scene.background != "white":
        found += [f"canvas {name}|{scene.background}" for name in sorted(set(names))]
    return found


@functools.lru_cache(maxsize=65536)
def is_held_out(combination: str) -> bool:
    """Say whether a combination is kept from training: a stable hash of its text takes `HELD_OUT_PERCENT` of them."""
    return stable_percent(f"scene {combination}") < HELD_OUT_PERCENT


def split_of(scene: Scene) -> Split:
    """Return "held-out" for a scene with at least one held-out combination, else "train"."""
    return "held-out" if any(map(is_held_out, combinations(scene))) else "train"


def _pick_colour(rng: random.Random, name: str, taken: Sequence[str | None]) -> str:
    free = [colour for colour in COLOURS if colour not in taken and stands_out(name, colour)]
    return rng.choice(free or [colour for colour in COLOURS if colour not in taken])


def _pick_canvas(rng: random.Random, names: Sequence[str]) -> str:
    """Return the canvas colour on which objects without a tile stand."""
    free = [colour for colour in COLOURS if colour != "white" and all(stands_out(name, colour) for name in names)]
    return rng.choice(free) if free and rng.random() * 100 >= PLAIN_PERCENT else "white"


def _counting(rng: random.Random, names: Sequence[str]) -> list[Placed]:
    """Place two to four objects: mostly equal ones, else of two or three concepts."""
    total = rng.choice((2, 3, 4))
    ways = {2: [[2]], 3: [[3], [3], [2, 1]], 4: [[4], [4], [3, 1], [2, 2], [2, 1, 1]]}[total]
    counts = [way for way in ways if len(way) <= len(names)]
    chosen = rng.choice(counts)
    objects = [name for name, count in zip(rng.sample(names, len(chosen)), chosen, strict=True) for _ in range(count)]
    rng.shuffle(objects)
    pair = len(objects) == 2
    cells = rng.choice(SIDES) if pair else sorted(rng.sample(CORNERS, len(objects)), key=CORNERS.index)
    return [Placed(name, cell) for name, cell in zip(objects, cells, strict=True)]


def draw_scene(rng: random.Random, kind: str, names: Sequence[str], size: int = 64) -> Scene:
    """Draw one scene of a kind, whatever its split."""
    if kind == "counting":
        placed = _counting(rng, names)
    elif kind in ("one", "colours"):
        placed = [Placed(rng.choice(names), "centre")]
    else:
        placed = [Placed(name, cell) for name, cell in zip(rng.sample(names, 2), rng.choice(SIDES), strict=True)]
    if kind not in ("colours", "binding"):
        return Scene(kind, _pick_canvas(rng, [thing.name for thing in placed]), tuple(placed), size)
    canvas = rng.choice(list(COLOURS)) if rng.random() * 100 >= PLAIN_PERCENT else "white"
    tiled: list[Placed] = []
    for thing in placed:
        taken = [canvas, *(other.tile for other in tiled)]
        tiled.append(thing._replace(tile=_pick_colour(rng, thing.name, taken)))
    return Scene(kind, canvas, tuple(tiled), size)


def _active(concepts: int | Sequence[str] | None) -> tuple[str, ...]:
    if concepts is None:
        return SCENE_NAMES
    chosen = SCENE_NAMES[:concepts] if isinstance(concepts, int) else tuple(concepts)
    unknown = [name for name in chosen if name not in SCENE_NAMES]
    if unknown or (isinstance(concepts, int) and not 0 < concepts <= len(SCENE_NAMES)) or not chosen:
        came = f"{unknown[0]!r}" if unknown else f"{concepts}"
        known = f"a number up to {len(SCENE_NAMES)} or names of SCENE_NAMES"
        raise ValueError(f"concepts must be {known}, got {came}: take fewer, or names that are listed there")
    return chosen


def draw_of_split(
    rng: random.Random, split: Split, kinds: Sequence[str], names: Sequence[str], size: int = 64
) -> Scene:
    """Draw scenes of one kind until one belongs to the split.

    Raises:
        ValueError: none was found, because there are too few concepts.
    """
    kind = rng.choice(kinds)
    for _ in range(MAX_TRIES):
        scene = draw_scene(rng, kind, names, size)
        if split_of(scene) == split:
            return scene
    raise ValueError(f"a {split} scene of kind {kind!r} needs more than these {len(names)} concepts: name more of them")


def scene_samples(
    split: Split, *, count: int, seed: int, concepts: int | Sequence[str] | None = None,
    kinds: Sequence[str] | None = None, size: int = 64,
) -> Iterator[Sample]:  # fmt: skip
    """Yield scenes as shard samples: PNG, caption, and json with captions, questions and truth.

    `concepts` takes the first so many of `SCENE_NAMES`, or names of it.

    Raises:
        ValueError: an unknown split, kind or concept, or fewer concepts than the kinds need.
    """
    names, kinds = _active(concepts), tuple(KINDS if kinds is None else kinds)
    if split not in ("train", "held-out"):
        raise ValueError(f"split must be 'train' or 'held-out', got {split!r}")
    if not kinds or any(kind not in KINDS for kind in kinds):
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {', '.join(kinds) or 'none'}")
    if len(names) < 2 and set(kinds) & {"two", "position", "binding"}:
        raise ValueError(f"scenes of two objects need two concepts, got {len(names)}: name more, or other kinds")
    for index in range(count):
        rng = random.Random(f"{seed} {split} {index}")
        scene = draw_of_split(rng, split, kinds, names, size)
        picture_bytes = io.BytesIO()
        render(scene).save(picture_bytes, "PNG", compress_level=1)
        lines = captions(scene)
        about = {"captions": lines, "questions": questions(scene, rng, names), "truth": scene.truth()}
        members = {
            "png": picture_bytes.getvalue(),
            "txt": rng.choice(lines).encode(),
            "json": json.dumps(about, ensure_ascii=False).encode(),
        }
        yield Sample(f"scene-{split}-{seed}-{index:07d}", members)
