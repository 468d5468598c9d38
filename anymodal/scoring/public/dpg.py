"""DPG-Bench (arXiv:2403.05135): its prompts as grids of pictures, and the result file of its evaluator as scores.

bash dpg_bench/dist_eval.sh PICTURES WIDTH      # WIDTH of one picture, in pixels
"""

import re
from pathlib import Path

from PIL import Image

from anymodal.pipeline import Pipeline
from anymodal.scoring.public.drawing import Wanted, draw_missing
from anymodal.scoring.public.entries import spaced
from anymodal.scoring.report import Score

NUM_IMAGES = 4  # a prompt, as the authors draw
_CATEGORY = re.compile(r"\t(?P<name>.+): (?P<percent>[\d.]+)")
_PICTURE = re.compile(r".+\.png, (?P<scores>[\d.e-]+(?:, [\d.e-]+)*)")


def draw_dpg(pipe: Pipeline, data: Path, out: Path, *, limit: int | None = None, seed: int = 0) -> list[Path]:
    """Draw prompts, a text file each, into OUT/NAME.png: four pictures as a grid, with seeds from `seed` on.

    Raises:
        ValueError: there is no prompt, or the model cannot draw, or not squares.
    """
    files = sorted(data.glob("*.txt"))
    if not files:
        raise ValueError(f"there must be prompts *.txt in {data}, got none; fetch ELLA's dpg_bench/prompts into it.")
    height, width = pipe.prompter.parts.layout.sizes[0]
    if height != width:
        raise ValueError(f"DPG-Bench's evaluator cuts grids of squares, this model draws {height} x {width} codes.")
    wanted = [
        Wanted(_prompt(files[number]), out / f"{files[number].stem}.png", seed, NUM_IMAGES)
        for number in spaced(len(files), limit)
    ]
    draw_missing(pipe, wanted)
    return [each.path for each in wanted]


def score_dpg(results: Path) -> list[Score]:
    """Score a result file: the mean over pictures, and the categories that it tells.

    Raises:
        ValueError: the file tells no picture, or was cut off before its categories.
    """
    lines = results.read_text(encoding="utf-8").splitlines()
    found = [match["scores"].split(", ") for line in lines if (match := _PICTURE.fullmatch(line))]
    if not found:
        raise ValueError(f"{results} must hold lines `PICTURE, score, ..., mean`, got none; judge the pictures.")
    categories = [match for line in lines if (match := _CATEGORY.fullmatch(line))]
    if not categories:
        raise ValueError(f"{results} must end in scores by category, got none; judge the pictures to the end.")
    mean = sum(float(scores[-1]) for scores in found) / len(found)
    parts = [Score(match["name"], float(match["percent"]) / 100, len(found)) for match in categories]
    return [Score("DPG-Bench", mean, len(found)), *parts]


def picture_width(path: Path) -> int:
    """Return the width of one picture of a grid, which the evaluator wants to be told."""
    with Image.open(path) as image:
        return image.width // 2


def _prompt(file: Path) -> str:
    text = file.read_text(encoding="utf-8").strip()
    if not text:
        raise ValueError(f"{file} must hold a prompt, it is empty; fetch it again.")
    return text
