"""Draw the prompts of a benchmark into files that its evaluator reads; a picture that is there is not drawn again."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from anymodal.data.progress import track
from anymodal.pipeline import Pipeline

BATCH = 32


@dataclass(frozen=True)
class Wanted:
    """Hold a prompt, where its picture belongs, and the seed; of `count` pictures a grid of two columns is kept.

    >>> Wanted("a dog", Path("00000/samples/0000.png"), seed=0).count
    1
    """

    prompt: str
    path: Path
    seed: int
    count: int = 1


def draw_missing(pipe: Pipeline, wanted: Sequence[Wanted]) -> None:
    """Draw what is not there yet, some at a time, and show progress on standard error.

    Raises:
        ValueError: a prompt does not fit the context, or the model cannot draw.
    """
    missing = [each for each in wanted if not each.path.is_file()]
    parts: list[list[Wanted]] = []
    for each in missing:  # a call has one seed
        alike = parts and (parts[-1][0].seed, parts[-1][0].count) == (each.seed, each.count)
        if not alike or (len(parts[-1]) + 1) * each.count > BATCH:
            parts.append([])
        parts[-1].append(each)
    for part in track(parts, "drawings"):
        count = part[0].count
        images = pipe.generate_image([each.prompt for each in part], num_images=count, seed=part[0].seed)
        for number, each in enumerate(part):
            _save(grid(images[number * count : (number + 1) * count]), each.path)


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """Lay pictures of one size side by side, two a row, without a border.

    >>> grid([Image.new("RGB", (8, 8))] * 4).size
    (16, 16)
    """
    columns = min(2, len(images))
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height))
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * width, number // columns * height))
    return sheet


def _save(image: Image.Image, path: Path) -> None:
    """Write a picture whole or not at all: half of one would be taken for drawn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        image.save(temporary, "PNG")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
