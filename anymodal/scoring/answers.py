"""How often is an answer right? By type of question, next to what always giving the commonest answer would reach."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from anymodal.data.pictures import decode_picture
from anymodal.data.samples import details_of, picture_bytes
from anymodal.data.shards import Sample
from anymodal.pipeline import Pipeline

BATCH = 32
BLANKS = {"a grey picture": "#808080", "a white picture": "#ffffff"}


@dataclass(frozen=True)
class Asked:
    """Hold a question about a picture, its honest answer and its type."""

    image: Image.Image
    question: str
    answer: str
    type: str


@dataclass(frozen=True)
class TypeScore:
    """Hold the score of one type of question.

    >>> TypeScore("count", num_questions=8, num_right=6, chance=0.5).share
    0.75
    """

    type: str
    num_questions: int
    num_right: int
    chance: float

    @property
    def share(self) -> float:
        """Return the share of right answers."""
        return self.num_right / max(1, self.num_questions)


def questions_of(samples: Iterable[Sample]) -> list[Asked]:
    """Return every question that samples carry."""
    return [
        Asked(decode_picture(picture_bytes(sample)), about["question"], about["answer"], about.get("type", "other"))
        for sample in samples
        for about in details_of(sample).get("questions", [])
    ]


def ask(pipe: Pipeline, asked: Sequence[Asked]) -> list[str]:
    """Let a model answer questions, some at a time."""
    answers: list[str] = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        answers += pipe.answer([each.image for each in part], [each.question for each in part])
    return answers


def ask_blind(pipe: Pipeline, asked: Sequence[Asked]) -> dict[str, list[str]]:
    """Let a model answer without what the questions are about: by their text alone, and shown an empty picture."""
    alone: list[str] = []
    for start in range(0, len(asked), BATCH):
        questions = [[each.question] for each in asked[start : start + BATCH]]
        alone += [" ".join(map(str, parts)) for parts in pipe.generate_batch(questions, want="text")]
    found = {"no picture": alone}
    for how, colour in BLANKS.items():
        found[how] = ask(pipe, [replace(each, image=Image.new("RGB", each.image.size, colour)) for each in asked])
    return found


def is_right(answer: str, truth: str) -> bool:
    """Say whether two answers are the same but for case, articles, spaces, a full stop and American grey.

    >>> is_right("A dog.", "the dog"), is_right("two dogs", "a dog"), is_right("gray", "grey")
    (True, False, True)
    """
    return normalised(answer) == normalised(truth)


def normalised(answer: str) -> str:
    """Return an answer in lower case and British, without article and full stop."""
    words = re.sub(r"\bgray\b", "grey", " ".join(answer.lower().split())).rstrip(".! ")
    return re.sub(r"^(an?|the) ", "", words)


def score_answers(asked: Sequence[Asked], answers: Sequence[str]) -> list[TypeScore]:
    """Score answers by type of question, the commonest type first.

    Chance is the share of the commonest answer among these very questions.

    Raises:
        ValueError: the numbers of questions and answers differ.
    """
    if len(asked) != len(answers):
        raise ValueError(f"there must be one answer a question, got {len(asked)} questions and {len(answers)} answers.")
    truths: dict[str, Counter[str]] = {}
    right = Counter[str]()
    for each, answer in zip(asked, answers, strict=True):
        truths.setdefault(each.type, Counter())[normalised(each.answer)] += 1
        right[each.type] += is_right(answer, each.answer)
    kinds = sorted(truths, key=lambda kind: (-truths[kind].total(), kind))
    return [
        TypeScore(kind, truths[kind].total(), right[kind], max(truths[kind].values()) / truths[kind].total())
        for kind in kinds
    ]
