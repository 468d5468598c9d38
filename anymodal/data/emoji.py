"""The embedded real data set: emoji pictures with names, keywords and groups.

The pictures are Google's Noto emoji (Apache-2.0), the texts emojibase's (MIT); `assets/NOTICE` has the notices.
Emoji with the same picture are one concept. Captions and questions are templates over those real names and groups.

The split is by concept: a stable hash of the code keeps some from training, but never one that scenes are made of.
"""

import difflib
import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from PIL import Image

from anymodal.data.english import plural, with_article
from anymodal.data.shards import Sample

Split = Literal["train", "held-out"]
HELD_OUT_PERCENT = 5
MIN_SIZE = 8


@dataclass(frozen=True)
class Concept:
    """Describe one picture of the set.

    >>> dog = find_concept("dog")
    >>> dog.with_article, dog.plural, dog.group
    ('a dog', 'dogs', 'animals and nature')
    """

    name: str
    aliases: tuple[str, ...]
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    code: str

    @property
    def with_article(self) -> str:
        """Return "a dog", "an alien", "grapes", "the flag of norway"."""
        return with_article(self.name)

    @property
    def plural(self) -> str:
        """Return "dogs", "mice", "grapes"."""
        return plural(self.name)


@functools.cache
def concepts() -> tuple[Concept, ...]:
    """Return every concept in the order of the Unicode emoji list."""
    entries = json.loads((resources.files("anymodal.data") / "assets" / "emoji.json").read_text("utf-8"))
    lists = ("aliases", "keywords")
    return tuple(Concept(**{**entry, **{key: tuple(entry[key]) for key in lists}}) for entry in entries)


@functools.cache
def _by_name() -> dict[str, Concept]:
    return {concept.name: concept for concept in concepts()}


def find_concept(name: str) -> Concept:
    """Return the concept with this name.

    Raises:
        ValueError: there is none; the message names the nearest ones.
    """
    if name not in _by_name():
        near = difflib.get_close_matches(name, list(_by_name()), n=3)
        raise ValueError(f"a concept of the embedded set is needed, {name!r} is none: try {', '.join(near) or 'dog'}")
    return _by_name()[name]


@functools.cache
def scene_names() -> tuple[str, ...]:
    """Return the listed concepts that scenes are made of, the most recognisable first."""
    return tuple((resources.files("anymodal.data") / "assets" / "scene_names.txt").read_text("utf-8").splitlines())


@functools.cache
def _pictures() -> dict[str, bytes]:
    data = io.BytesIO((resources.files("anymodal.data") / "assets" / "emoji.zip").read_bytes())
    with zipfile.ZipFile(data) as archive:
        return {name.removesuffix(".webp"): archive.read(name) for name in archive.namelist()}


def picture(concept: Concept | str) -> Image.Image:
    """Return a concept's 64x64 RGBA picture."""
    if isinstance(concept, str):
        concept = find_concept(concept)
    return Image.open(io.BytesIO(_pictures()[concept.code])).convert("RGBA")


def stable_percent(text: str) -> int:
    """Return a number in [0, 100) that depends on the text alone, on every machine: the ground of every split."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100


def split_of_concept(concept: Concept) -> Split:
    """Return "held-out" for a concept that training must not see, else "train"."""
    kept = stable_percent(f"emoji {concept.code}") < HELD_OUT_PERCENT and concept.name not in scene_names()
    return "held-out" if kept else "train"


def _chosen(names: Sequence[str] | None) -> Sequence[Concept]:
    return concepts() if names is None else [find_concept(name) for name in names]


def emoji_samples(split: Split, *, concepts: Sequence[str] | None = None, size: int = 64) -> Iterator[Sample]:
    """Yield one shard sample a concept: its picture on white as PNG, its caption, and json with captions and questions.

    `concepts` names those to take (those of them that are in the split); `size` is the side in pixels, at least 8.

    Raises:
        ValueError: an unknown split or concept, or a size that is too small.
    """
    from anymodal.data.emoji_text import captions, questions  # which reads the concepts of this module

    if split not in ("train", "held-out"):
        raise ValueError(f"split must be 'train' or 'held-out', got {split!r}: take one of them")
    if size < MIN_SIZE:
        raise ValueError(f"size must be at least {MIN_SIZE} pixels, got {size}: take 64")
    for concept in _chosen(concepts):
        if split_of_concept(concept) != split:
            continue
        image = picture(concept)
        if size != image.width:
            image = image.resize((size, size), Image.Resampling.LANCZOS)
        paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
        data = io.BytesIO()
        Image.alpha_composite(paper, image).convert("RGB").save(data, "PNG", compress_level=1)
        about = {"captions": captions(concept), "questions": questions(concept)}
        members = {
            "png": data.getvalue(),
            "txt": concept.with_article.encode(),
            "json": json.dumps(about, ensure_ascii=False).encode(),
        }
        yield Sample(f"emoji-{concept.code}", members)
