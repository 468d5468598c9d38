"""Let a model answer the questions of a benchmark; what is answered is kept, and not asked again."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Unpack

from anymodal.data.progress import track
from anymodal.decoding.config import Options
from anymodal.pipeline import Pipeline
from anymodal.scoring.public.questions import Question
from anymodal.tokens.parts import Part

By = Literal["generation", "likelihood"]
BATCH = 16


def answer_all(pipe: Pipeline, questions: Sequence[Question], *, by: By, seed: int, kept: Path) -> list[str]:
    """Return an answer to every question; `kept` is a file of JSON lines that grows with them.

    By "generation" the model writes them; by "likelihood" the answer to a question with options is the letter that is
    most probable. A question that does not fit the model's context has an empty answer, and is told on standard error.

    Raises:
        ValueError: a picture is missing or broken, or no question fits the context.
    """
    answers = _kept(kept)
    left = [question for question in questions if question.id not in answers]
    refused: list[str] = []
    with kept.open("a", encoding="utf-8") as file:
        for start in track(range(0, len(left), BATCH), "questions"):
            part = left[start : start + BATCH]
            for question, answer in zip(part, _answers(pipe, part, by, seed), strict=True):
                refused += [f"{question.id}: {answer}"] if isinstance(answer, ValueError) else []
                answers[question.id] = "" if isinstance(answer, ValueError) else answer
                file.write(json.dumps({"id": question.id, "answer": answers[question.id]}, ensure_ascii=False) + "\n")
            file.flush()
    if refused:
        sys.stderr.write(f"{len(refused)} of {len(left)} questions count as wrong, the first one: {refused[0]}\n")
    if refused and len(refused) == len(questions):
        kept.unlink()
        raise ValueError(f"no question can be asked, the first one: {refused[0]}")
    return [answers[question.id] for question in questions]


def _kept(path: Path) -> dict[str, str]:
    """Read what was answered before; a last line that was cut off is dropped."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    if lines and not lines[-1].endswith("\n"):
        path.write_text("".join(lines[:-1]), encoding="utf-8")
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return {entry["id"]: entry["answer"] for entry in whole}


def _answers(pipe: Pipeline, questions: Sequence[Question], by: By, seed: int) -> list[str | ValueError]:
    """Answer some questions; an answer that cannot be had is the reason why."""
    documents = [question.document() for question in questions]
    chosen = [by == "likelihood" and bool(question.options) for question in questions]
    left = [document for document, likely in zip(documents, chosen, strict=True) if not likely]
    written = iter(write_text(pipe, left, seed=seed))
    return [
        _likeliest(pipe, document, question) if likely else next(written)
        for question, document, likely in zip(questions, documents, chosen, strict=True)
    ]


def write_text(
    pipe: Pipeline, documents: Sequence[Sequence[Part]], **options: Unpack[Options]
) -> list[str | ValueError]:
    """Let a model answer documents in text, all in one batch; what does not fit its context gives the error instead."""
    if not documents:
        return []
    options["want"] = "text"
    try:
        continued = pipe.generate_batch(documents, **options)
    except ValueError as error:
        if len(documents) == 1:
            return [error]
        return [answer for document in documents for answer in write_text(pipe, [document], **options)]
    return ["".join(part for part in parts if isinstance(part, str)) for parts in continued]


def _likeliest(pipe: Pipeline, document: list[Part], question: Question) -> str | ValueError:
    try:
        letters = list(question.options)
        told = pipe.log_likelihoods(document, letters)
        return letters[told.index(max(told))]
    except ValueError as error:
        return error
