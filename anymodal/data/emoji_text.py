"""What is said and asked about one emoji: templates over its name, keywords, group and subgroup."""

import functools
import random
from typing import TypedDict

from anymodal.data.emoji import Concept, concepts
from anymodal.data.english import is_plural, with_article

KEYWORDS_A_CAPTION = 3
NEAR_SHARE = 0.6


class Question(TypedDict):
    """Hold one question as it stands in a sample's json."""

    question: str
    answer: str
    type: str


# category -> subgroups (or their beginnings) whose members are one beyond doubt, save for the names in `_DOUBTFUL`
CATEGORIES = {
    "an animal": ("animal-",),
    "a plant": ("plant-",),
    "food": ("food-",),
    "a drink": ("drink",),
    "a flag": ("flag", "country-flag", "subdivision-flag"),
    "a face": ("face-smiling", "face-affection", "face-tongue", "face-neutral-skeptical", "face-sleepy", "face-unwell",
               "face-hat", "face-glasses", "face-concerned"),
    "a person": ("person", "person-role", "person-gesture"),
    "a hand": ("hand-",),
    "a heart": ("heart",),
    "a vehicle": ("transport-ground", "transport-water", "transport-air"),
    "a building": ("place-building", "place-religious"),
    "something to wear": ("clothing",),
    "a musical instrument": ("musical-instrument",),
    "a clock": ("time",),
    "an arrow": ("arrow",),
    "a zodiac sign": ("zodiac",),
}  # fmt: skip
# Pairs of which one could argue: they are never asked about each other's members.
_NEAR = (
    {"an animal", "food"}, {"a plant", "food"}, {"food", "a drink"}, {"a person", "a face"}, {"a person", "a hand"},
    {"a face", "a hand"}, {"a face", "a heart"}, {"a person", "something to wear"}, {"an arrow", "a clock"},
    {"a person", "a vehicle"}, {"a building", "a vehicle"}, {"an animal", "a zodiac sign"}, {"a plant", "an animal"},
    {"a person", "a musical instrument"}, {"a person", "food"}, {"a face", "something to wear"},
    {"a person", "a drink"}, {"a building", "a heart"}, {"a zodiac sign", "a person"}, {"a flag", "a heart"},
)  # fmt: skip
# In these groups the names of neighbours overlap: is an anxious face no worried face?
_BLURRED = ("smileys and emotion", "people and body", "symbols")
_DOUBTFUL = frozenset((
    "paw prints", "pig nose", "feather", "wing", "spider web", "spiral shell", "coral", "microbe", "dragon",
    "dragon face", "unicorn", "phoenix", "sauropod", "t-rex", "oyster", "bouquet", "rosette", "white flower",
    "empty nest", "nest with eggs", "mushroom", "fallen leaf", "maple leaf", "leaf fluttering in wind", "sheaf of rice",
    "pine decoration", "honey pot", "bowl with spoon", "takeout box", "brown mushroom", "canned food", "salt",
    "cooking", "roasted sweet potato", "bottle with popping cork", "baby bottle", "teapot", "ice", "cup with straw",
    "beverage box", "pouring liquid", "mate", "white heart", "love letter", "heart exclamation", "heart decoration",
    "kiss mark", "station", "bus stop", "motorway", "railway track", "traffic light", "horizontal traffic light",
    "construction", "police car light", "stop sign", "wheel", "oil drum", "fuel pump", "ring buoy", "anchor", "seat",
    "parachute", "satellite", "roller skate", "skateboard", "manual wheelchair", "motorized wheelchair",
    "aerial tramway", "airplane departure", "airplane arrival", "railway car", "tram car", "building construction",
    "brick", "rock", "wood", "wedding", "statue of liberty", "tokyo tower", "stadium", "shinto shrine", "kaaba",
    "houses", "purse", "handbag", "clutch bag", "shopping bags", "backpack", "lipstick", "diamond", "hair pick",
    "folding hand fan", "prayer beads", "ring", "hourglass", "hourglass not done", "watch", "stopwatch",
    "head shaking horizontally", "head shaking vertically", "exploding head", "face in clouds", "handshake",
    "heart hands", "nail polish", "selfie", "writing hand", "open hands", "raising hands", "clapping hands",
    "folded hands", "palms up together", "palm tree", "flag in hole", "shaking face", "santa claus", "breast-feeding",
    "person in tuxedo", "woman's clothes",
))  # fmt: skip


def category_of(concept: Concept) -> str | None:
    """Return the category that a concept belongs to beyond doubt, if there is one."""
    if concept.name in _DOUBTFUL:
        return None
    for category, subgroups in CATEGORIES.items():
        if concept.subgroup in subgroups or concept.subgroup.startswith(tuple(s for s in subgroups if s.endswith("-"))):
            return category
    return None


@functools.cache
def _categories() -> tuple[str, ...]:
    """Return the category of every concept that has one: drawing from it asks a "no" as often as the "yes"."""
    return tuple(category for concept in concepts() if (category := category_of(concept)))


@functools.cache
def _subgroups() -> dict[str, list[Concept]]:
    members: dict[str, list[Concept]] = {}
    for concept in concepts():
        members.setdefault(concept.subgroup, []).append(concept)
    return members


def captions(concept: Concept) -> list[str]:
    """Return the captions of a concept: "dog", "a dog", its other names, and the name with keywords."""
    found = [concept.name, concept.with_article, *map(with_article, concept.aliases)]
    words = [word for word in concept.keywords if word not in concept.name.split()]
    for start in range(0, min(len(words), 2 * KEYWORDS_A_CAPTION), KEYWORDS_A_CAPTION):
        found.append(", ".join([concept.name, *words[start : start + KEYWORDS_A_CAPTION]]))
    return list(dict.fromkeys(found))


def _differ(one: Concept, other: Concept) -> bool:
    """Say whether neither concept could pass for the other by its name or keywords."""
    words, theirs = set(one.name.split()), set(other.name.split())
    known = {*one.aliases, *one.keywords}
    return not (theirs <= words or words <= theirs or other.name in known or one.name in other.keywords)


def _other(concept: Concept, rng: random.Random) -> Concept:
    """Return a concept that this one plainly is not: often of the same subgroup, where members are plainly apart."""
    if concept.group not in _BLURRED and rng.random() < NEAR_SHARE:
        near = [other for other in _subgroups()[concept.subgroup] if _differ(concept, other)]
        if near:
            return rng.choice(near)
    while True:
        other = rng.choice(concepts())
        if other.group != concept.group and _differ(concept, other):
            return other


@functools.cache
def _wrong_categories(category: str) -> tuple[str, ...]:
    return tuple(other for other in _categories() if other != category and {other, category} not in _NEAR)


def questions(concept: Concept) -> list[Question]:
    """Return questions with honest answers, "yes" as often as "no"; they depend on the concept alone."""
    rng = random.Random(f"questions {concept.code}")
    asked = [("What is this?", concept.with_article, "what"), ("Which group is this from?", concept.group, "group")]
    other = _other(concept, rng)
    for named, answer in ((concept, "yes"), (other, "no")):
        verb = "Are these" if is_plural(named.name) else "Is this"
        asked.append((f"{verb} {named.with_article}?", answer, "yes-no"))
    category = category_of(concept)
    if category is not None:
        wrong = _wrong_categories(category)
        asked += [(f"Is this {category}?", "yes", "yes-no"), (f"Is this {rng.choice(wrong)}?", "no", "yes-no")]
    return [Question(question=question, answer=answer, type=kind) for question, answer, kind in asked]
