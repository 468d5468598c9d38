"""Questions of easy-VQA's public test split: one shape of one colour. The package easy-vqa (MIT) brings them."""

import importlib.util
import json
import random
from pathlib import Path

from anymodal.data.pictures import decode_picture
from anymodal.scoring.answers import Asked

PACKAGE = "easy-vqa"
YES_NO, SHAPES = {"yes", "no"}, {"circle", "rectangle", "triangle"}


def split_folder() -> Path:
    """Return where the package keeps its test split.

    Raises:
        FileNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"these questions come with the package {PACKAGE}, which is not installed; run `pip install {PACKAGE}` "
            "(the extra anymodal[test] holds it), or take another bench."
        )
    return Path(spec.origin).parent / "data" / "test"


def read_questions(folder: Path, count: int | None, seed: int) -> list[Asked]:
    """Read the questions of a split as they are spelled there; at most `count` if given, chosen by the seed.

    Raises:
        OSError: a file is missing.
    """
    listed = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    most = len(listed) if count is None else min(count, len(listed))
    chosen = sorted(random.Random(seed).sample(range(len(listed)), most))
    asked = []
    for question, answer, number in (listed[i] for i in chosen):
        kind = "yes-no" if answer in YES_NO else "shape" if answer in SHAPES else "colour"
        picture = decode_picture((folder / "images" / f"{number}.png").read_bytes())
        asked.append(Asked(picture, question, answer, kind))
    return asked
