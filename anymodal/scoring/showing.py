"""What a model draws and answers while it learns."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from anymodal.data.config import DataConfig
from anymodal.data.opening import open_shards
from anymodal.data.samples import PICTURES, details_of
from anymodal.data.sheet import contact_sheet
from anymodal.pipeline import Pipeline
from anymodal.scoring.answers import Asked, ask, questions_of

MOST_QUESTIONS = 8


def snapshots(pipe: Pipeline, prompts: Sequence[str], asked: Sequence[Asked], folder: Path) -> Callable[[int], None]:
    """Return a function that, at a step, draws the prompts as one picture and writes the answers as one text."""

    def show(step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if prompts:
            sheet = contact_sheet(pipe.generate_image(list(prompts)), captions=list(prompts), scale=2)
            sheet.save(folder / f"step-{step:08d}.png")
        if asked:
            lines = [
                f"{each.question} {said} ({each.answer})" for each, said in zip(asked, ask(pipe, asked), strict=True)
            ]
            (folder / f"step-{step:08d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return show


def first_questions(data: DataConfig) -> list[Asked]:
    """Return a question about each of the first held-out pictures (training pictures where none are held out)."""
    index = open_shards(data, data.held_out or data.train)
    samples = (index.read(number) for number in range(len(index)))
    fit = (each for each in samples if details_of(each).get("questions") and set(PICTURES) & set(each.members))
    found = [questions_of([sample]) for sample in islice(fit, MOST_QUESTIONS)]
    return [questions[number % len(questions)] for number, questions in enumerate(found)]
