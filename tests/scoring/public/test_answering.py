from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from anymodal.pipeline import Pipeline
from anymodal.scoring.public.answering import BATCH, answer_all, write_text
from anymodal.scoring.public.questions import Question, lettered


class Parrot(Pipeline):
    """Say every prompt again, but nothing longer than its context of eight letters; prefer the letter B."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def generate_batch(self, documents: Any, **_: Any) -> list[Any]:
        self.batches.append(len(documents))
        if any(len(document[0]) > 8 for document in documents):
            raise ValueError("does not fit the context")
        return [[f"re {document[0]}", " and on"] for document in documents]

    def log_likelihoods(self, document: Any, targets: Any) -> list[float]:
        if len(document[0]) > 8:
            raise ValueError("does not fit the context")
        return [0.0 if target == "B" else -1.0 for target in targets]


def asked(*texts: str, **options: str) -> list[Question]:
    return [Question(text, (text,), (), options) for text in texts]


def test_answers_keep_their_order_and_are_not_asked_twice(tmp_path: Path) -> None:
    pipe, kept = Parrot(), tmp_path / "answers.jsonl"
    questions = asked(*(f"q{i}" for i in range(BATCH + 2)))
    wanted = [f"re q{i} and on" for i in range(BATCH + 2)]
    assert answer_all(pipe, questions[: BATCH + 1], by="generation", seed=0, kept=kept) == wanted[:-1]
    with kept.open("a") as file:
        file.write('{"id": "q17", "ans')  # killed within a line
    assert answer_all(pipe, questions, by="generation", seed=0, kept=kept) == wanted
    assert pipe.batches == [BATCH, 1, 1]
    assert len(kept.read_text().splitlines()) == len(questions)


def test_options_are_chosen_by_likelihood_and_the_rest_is_written(tmp_path: Path) -> None:
    questions = [*asked("free"), *asked("which", **lettered(["a dog", "a cat"]))]
    answers = answer_all(Parrot(), questions, by="likelihood", seed=0, kept=tmp_path / "answers.jsonl")
    assert answers == ["re free and on", "B"]


@pytest.mark.parametrize("by", ["generation", "likelihood"])
def test_a_question_that_does_not_fit_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], by: Any) -> None:
    kept = tmp_path / "answers.jsonl"
    questions = asked("short", "far too long", **lettered(["a dog", "a cat"]))
    answers = answer_all(Parrot(), questions, by=by, seed=0, kept=kept)
    assert (bool(answers[0]), answers[1]) == (True, "")
    assert "1 of 2 questions count as wrong, the first one: far too long: does not fit" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no question can be asked, the first one: as long"):
        answer_all(Parrot(), asked("as long as it"), by=by, seed=0, kept=tmp_path / "b.jsonl")


def test_a_batch_that_fails_is_written_one_by_one() -> None:
    documents: Sequence[list[Any]] = [["a"], ["far too long"], ["b"]]
    first, second, third = write_text(Parrot(), documents)
    assert (first, third) == ("re a and on", "re b and on")
    assert isinstance(second, ValueError)
    assert write_text(Parrot(), []) == []
