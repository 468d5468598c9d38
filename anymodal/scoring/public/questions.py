"""A question of a public benchmark, whatever file it came in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from PIL import Image

from anymodal.data.pictures import decode_picture
from anymodal.scoring.public.entries import spaced
from anymodal.tokens.parts import Part

Source = Path | bytes
"""A picture, as a file or as the bytes of one."""

FOLDERS = ("", "images", "val2014", "OCRBench_Images")


@dataclass(frozen=True, eq=False)
class Question:
    """Hold a question with its pictures and all answers that are right.

    Attributes:
        id: names it within its benchmark.
        parts: what the model is shown, in order: text, and pictures, which are read when they are asked for.
        answers: what is right; for a question with options, the right letters.
        options: the text of every option by its letter; empty where the answer is open.
        group: what the benchmark tells scores by.
        unit: what counts as one thing; questions that are right only together share it. Empty is the question alone.
        row: the entry as its file has it, without pictures.

    >>> Question("1", ("Which?",), ("B",), options=lettered(["a dog", "a cat"])).options
    {'A': 'a dog', 'B': 'a cat'}
    """

    id: str
    parts: tuple[str | Source, ...]
    answers: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    unit: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> list[Part]:
        """Return what the model is shown.

        Raises:
            ValueError: a picture is missing or broken; the message names question and file.
        """
        return [part if isinstance(part, str) else self._decode(part) for part in self.parts]

    def _decode(self, source: Source) -> Image.Image:
        name = source if isinstance(source, Path) else "its picture"
        try:
            return decode_picture(source.read_bytes() if isinstance(source, Path) else source)
        except (OSError, ValueError) as error:
            raise ValueError(f"question {self.id}: {name} must be a readable picture: {error}") from error


def lettered(options: Sequence[str]) -> dict[str, str]:
    """Give options the letters A, B, C, ..."""
    return dict(zip(ascii_uppercase, map(str, options), strict=False))


def find_picture(folder: Path, name: str, where: str) -> Path:
    """Return the file of a picture that an entry names, in `folder` or where the authors keep pictures in it.

    Raises:
        ValueError: it is in none of them, or the name leads out of the folder.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{where} must name a picture within {folder}, got {name!r}; fetch the file again.")
    for inner in FOLDERS:
        path = folder / inner / name
        if path.is_file():
            return path
    raise ValueError(f"{where} names the picture {name}, which is not in {folder}; put it there, or into images/.")


def spread(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """Keep `limit` things that count as one, evenly spread over all, with every question that belongs to them.

    Raises:
        ValueError: the limit is below 1.

    >>> [each.id for each in spread([Question(str(i), (), ()) for i in range(6)], 2)]
    ['0', '3']
    """
    units = list(dict.fromkeys(each.unit or each.id for each in questions))
    kept = {units[number] for number in spaced(len(units), limit)}
    return [each for each in questions if (each.unit or each.id) in kept]


def by_group(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, list[int]]:
    """Return the numbers of the questions of every group, in order of appearance.

    Raises:
        ValueError: the numbers of questions and answers differ, or there is no question.
    """
    if len(questions) != len(answers) or not questions:
        raise ValueError(
            f"there must be one answer a question, got {len(questions)} questions and {len(answers)} answers."
        )
    groups: dict[str, list[int]] = {}
    for number, each in enumerate(questions):
        groups.setdefault(each.group, []).append(number)
    return groups
