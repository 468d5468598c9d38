"""Tux Paint's stamps (GPL, never shipped): pictures of many styles, each with an English sentence that names it."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from anymodal.data.english import plural
from anymodal.data.pictures import decode_picture
from anymodal.pipeline import Pipeline
from anymodal.scoring.answers import Asked, ask, normalised
from anymodal.scoring.report import Score

FOLDER = Path("/usr/share/tuxpaint/stamps")
QUESTION = "What is this?"


@dataclass(frozen=True)
class Stamp:
    """Hold a picture and the sentence that stands beside it."""

    image: Image.Image
    sentence: str


def read_stamps(folder: Path, count: int, seed: int) -> list[Stamp]:
    """Read at most `count` stamps that have a sentence, chosen by the seed; drawings in SVG alone are left out.

    Raises:
        FileNotFoundError: there is none.
    """
    paths = sorted(path for path in folder.rglob("*.png") if path.with_suffix(".txt").is_file())
    if not paths:
        raise FileNotFoundError(
            f"{folder} must hold stamps (.png beside .txt), got none; run `apt-get install tuxpaint-stamps-default`, "
            "or give their folder with --data."
        )
    chosen = sorted(random.Random(seed).sample(paths, min(count, len(paths))))
    sentences = [path.with_suffix(".txt").read_text(encoding="utf-8").partition("\n")[0].strip() for path in chosen]
    return [
        Stamp(decode_picture(path.read_bytes()), sentence) for path, sentence in zip(chosen, sentences, strict=True)
    ]


def names_it(answer: str, sentence: str) -> bool:
    """Say whether an answer stands in a sentence, word for word, as one or as several.

    >>> names_it("a dog", "Two dogs."), names_it("a hot dog", "A dog."), names_it("a cat", "A caterpillar.")
    (True, False, False)
    """
    name, words = normalised(answer), " ".join(["", *re.findall(r"[\w-]+", sentence.lower()), ""])
    return bool(name) and any(f" {each} " in words for each in (name, plural(name)))


def score_stamps(pipe: Pipeline, stamps: Sequence[Stamp], known: Sequence[str]) -> list[Score]:
    """Ask what the stamps are; an answer is right that stands in the sentence.

    Chance is what the same answers reach with the sentences of all stamps. The ceiling is the share of sentences in
    which one of the `known` names stands; the second score is of these alone.
    """
    answers = ask(pipe, [Asked(stamp.image, QUESTION, stamp.sentence, "what") for stamp in stamps])
    taught = [any(names_it(name, stamp.sentence) for name in known) for stamp in stamps]
    right = [names_it(answer, stamp.sentence) for answer, stamp in zip(answers, stamps, strict=True)]
    rows = [
        ("all stamps", range(len(stamps))),
        ("a known name in the sentence", [i for i, t in enumerate(taught) if t]),
    ]
    scores = []
    for title, some in rows:
        lucky = sum(names_it(answers[i], stamps[j].sentence) for i in some for j in some)
        share = sum(right[i] for i in some) / max(1, len(some))
        ceiling = sum(taught[i] for i in some) / max(1, len(some))
        scores.append(Score(title, share, len(some), lucky / max(1, len(some) ** 2), ceiling))
    return scores
