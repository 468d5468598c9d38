"""What is said and asked about a scene: every caption true and sufficient, every answer honest."""

import functools
import random
from collections import Counter
from collections.abc import Sequence

from anymodal.data.canvas import COLOURS, Placed, Scene
from anymodal.data.emoji import find_concept
from anymodal.data.emoji_text import Question
from anymodal.data.english import NUMBERS, counted, listed, plural, with_article

OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
# The first object is ... the second one.
RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "top": ("above", "over"),
    "bottom": ("below", "under"),
}
PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}


def _on_tile(thing: Placed) -> str:
    return f"{with_article(thing.name)} on {with_article(f'{thing.tile} tile')}"


def _phrases(scene: Scene) -> list[str]:
    """Return what stands on the canvas in several phrasings."""
    first, *others = scene.objects
    a = with_article(first.name)
    if scene.kind == "one":
        bare = [] if plural(first.name) == first.name else [first.name]  # "fish" may be several
        return [a, *bare, f"one {first.name}"]
    if scene.kind == "colours":
        return [_on_tile(first), f"{with_article(f'{first.tile} tile')} with {a}"]
    if scene.kind == "counting":
        counts = Counter(thing.name for thing in scene.objects)
        parts = [counted(name, number) for name, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
        verb = "are" if len(scene.objects) > 1 else "is"
        return [listed(parts), f"there {verb} {listed(parts)}", listed(parts[::-1])][: 2 + (len(parts) > 1)]
    second = others[0]
    b = with_article(second.name)
    if scene.kind == "two":
        return [f"{a} and {b}", f"{b} and {a}"]
    if scene.kind == "binding":
        swapped = f"{with_article(f'{second.tile} tile')} with {b} and {with_article(f'{first.tile} tile')} with {a}"
        return [f"{_on_tile(first)} and {_on_tile(second)}", f"{_on_tile(second)} and {_on_tile(first)}", swapped]
    here = [f"{a} {relation} {b}" for relation in RELATIONS[first.cell]]
    there = [f"{b} {relation} {a}" for relation in RELATIONS[second.cell]]
    places = f"{a} {PLACES[first.cell]} and {b} {PLACES[second.cell]}"
    return [here[0], there[0], here[1], there[1], places]


def captions(scene: Scene) -> list[str]:
    """Return every caption of a scene, the plainest first; each names the canvas colour unless that is white."""
    phrases = _phrases(scene)
    pictured = f"a picture of {phrases[0]}"
    if scene.background != "white":
        ground = with_article(f"{scene.background} background")
        return [
            *(f"{phrase} on {ground}" for phrase in phrases),
            f"{pictured} on {ground}",
            f"on {ground}, {phrases[0]}",
        ]
    return [*phrases, pictured, f"{phrases[0]} on a white background"]


@functools.lru_cache(maxsize=64)
def _by_subgroup(names: tuple[str, ...]) -> dict[str, list[str]]:
    near: dict[str, list[str]] = {}
    for name in names:
        near.setdefault(find_concept(name).subgroup.split("-")[0], []).append(name)
    return near


def _absent(scene: Scene, rng: random.Random, names: Sequence[str]) -> str | None:
    """Return a concept that is not in the scene, of a related group if there is one."""
    present = {thing.name for thing in scene.objects}
    group = find_concept(scene.objects[0].name).subgroup.split("-")[0]
    related = [name for name in _by_subgroup(tuple(names)).get(group, ()) if name not in present]
    others = [name for name in names if name not in present]
    pool = related if related and rng.random() < 0.5 else others
    return rng.choice(pool) if pool else None


def _yes_no(scene: Scene, rng: random.Random, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of questions: the first of each is answered yes, the second no."""
    thing = rng.choice(scene.objects)
    counts = Counter(other.name for other in scene.objects)
    pairs: list[tuple[str, str]] = []

    def ask(question: str, right: str, wrong: str) -> None:
        pairs.append((question.format(right), question.format(wrong)))

    absent = _absent(scene, rng, names)
    if absent is not None:
        ask("Is there {}?", with_article(thing.name), with_article(absent))
    if scene.kind == "counting":
        name, number = rng.choice(sorted(item for item in counts.items() if item[1] > 1))
        wrong_number = rng.choice([other for other in (2, 3, 4) if other != number])
        ask("Are there {} " + f"{plural(name)}?", NUMBERS[number], NUMBERS[wrong_number])
    if thing.tile is not None:
        worn = [other.tile for other in scene.objects if other.tile not in (thing.tile, None)]
        free = [colour for colour in COLOURS if colour not in (thing.tile, scene.background)]
        wrong_tile = rng.choice(worn or free)
        ask(f"Is the {thing.name} on " + "{} tile?", with_article(thing.tile), with_article(str(wrong_tile)))
    if len(counts) == len(scene.objects) == 2:
        other = next(other for other in scene.objects if other is not thing)
        relations = [RELATIONS[cell][0] for cell in (thing.cell, OPPOSITE[thing.cell])]
        ask(f"Is the {thing.name} " + "{} " + f"the {other.name}?", *relations)
    # most canvases are white: so that "white?" is not nearly always a yes, it is the favourite wrong answer
    coloured = [colour for colour in COLOURS if colour not in (scene.background, "white")]
    white = scene.background != "white" and rng.random() < 0.6
    ask("Is the background {}?", scene.background, "white" if white else rng.choice(coloured))
    return pairs


def questions(scene: Scene, rng: random.Random, names: Sequence[str]) -> list[Question]:
    """Return questions with their answers; `names` are the concepts that a "no" may be asked about."""
    counts = Counter(thing.name for thing in scene.objects)
    asked: list[tuple[str, str, str]] = []
    if len(scene.objects) == 1:
        asked.append(("What is this?", with_article(scene.objects[0].name), "what"))
    elif len(counts) == 1:
        asked.append(("What are these?", plural(scene.objects[0].name), "what"))
    if len(scene.objects) > 1:
        thing = rng.choice(scene.objects)
        corner = f"at the {thing.cell}"
        asked.append((f"What is {PLACES.get(thing.cell, corner)}?", with_article(thing.name), "what"))
    for name, number in sorted(counts.items()):
        asked.append((f"How many {plural(name)} are there?", NUMBERS[number], "count"))
    asked.append(("How many things are there?", NUMBERS[len(scene.objects)], "count"))
    for thing in scene.objects:
        if len(scene.objects) > 1 and counts[thing.name] == 1:
            asked.append((f"Where is the {thing.name}?", thing.cell, "where"))
        if thing.tile is not None:
            asked.append((f"What colour is the tile of the {thing.name}?", thing.tile, "colour"))
            asked.append((f"What is on the {thing.tile} tile?", with_article(thing.name), "what"))
    asked.append(("What colour is the background?", scene.background, "colour"))
    for yes, no in _yes_no(scene, rng, names):
        asked += [(yes, "yes", "yes-no"), (no, "no", "yes-no")]
    return [Question(question=question, answer=answer, type=kind) for question, answer, kind in asked]
