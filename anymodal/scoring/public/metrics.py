"""Scores of answers to the questions of public benchmarks, by the formulas of their authors."""

import re
from collections.abc import Sequence
from math import prod

from anymodal.scoring.answers import is_right
from anymodal.scoring.public.questions import Question, by_group
from anymodal.scoring.public.readers import MME_TASKS
from anymodal.scoring.report import Score

RECOGNITION = (
    "Regular Text Recognition", "Irregular Text Recognition", "Artistic Text Recognition", "Handwriting Recognition",
    "Digit String Recognition", "Non-Semantic Text Recognition",
)  # fmt: skip
_BETWEEN = re.compile(r"[.()\[\],:;!*#{}\s]+")


def pope_says_yes(answer: str) -> bool:
    """Read an answer as POPE does: no where its first sentence holds the word no or not, else yes.

    >>> pope_says_yes("Yes, there is."), pope_says_yes("There is not."), pope_says_yes("NO")
    (True, False, True)
    """
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def score_pope(questions: Sequence[Question], answers: Sequence[str]) -> list[Score]:
    """Score yes-no answers: accuracy, precision, recall and F1 of "yes", and the share of it, for every group.

    Several groups are led by their means.

    Raises:
        ValueError: the numbers of questions and answers differ.
    """
    scores: list[Score] = []
    groups = by_group(questions, answers)
    for group, numbers in groups.items():
        said = [pope_says_yes(answers[i]) for i in numbers]
        true = [questions[i].answers[0] == "yes" for i in numbers]
        both = sum(a and b for a, b in zip(said, true, strict=True))
        agree = sum(a == b for a, b in zip(said, true, strict=True))
        count, positive = len(numbers), sum(true)
        precision, recall = both / max(1, sum(said)), both / max(1, positive)
        scores += [
            Score(f"{group}: accuracy", agree / count, count, chance=max(positive, count - positive) / count),
            Score(f"{group}: precision", precision, sum(said)),
            Score(f"{group}: recall", recall, positive),
            Score(f"{group}: F1", 2 * both / max(1, sum(said) + positive), count),
            Score(f"{group}: yes said", sum(said) / count, count),
        ]
    means = [_mean(name, scores) for name in ("accuracy", "F1")] if len(groups) > 1 else []
    return [*means, *scores]


def _mean(name: str, scores: Sequence[Score]) -> Score:
    found = [score for score in scores if score.name.endswith(f": {name}")]
    return Score(f"{name}, mean", sum(each.value for each in found) / len(found), sum(each.count for each in found))


def mme_says(answer: str) -> str:
    """Read an answer as MME does: yes or no where its first four letters hold it, else other.

    >>> mme_says("Yes."), mme_says("No, it is not"), mme_says("There is no dog")
    ('yes', 'no', 'other')
    """
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score_mme(questions: Sequence[Question], answers: Sequence[str]) -> list[Score]:
    """Score pairs of yes-no questions: accuracy a question, and accuracy+, of pictures with both answers right.

    A task is worth the sum of both in percent, 200 points at most; perception and cognition are sums over tasks.

    Raises:
        ValueError: the numbers of questions and answers differ.
    """
    points: dict[str, float] = {}
    scores: list[Score] = []
    counts: dict[str, int] = {}
    for task, numbers in by_group(questions, answers).items():
        pictures: dict[str, list[bool]] = {}
        for i in numbers:
            right = mme_says(answers[i]) == questions[i].answers[0]
            pictures.setdefault(questions[i].unit, []).append(right)
        accuracy = sum(map(sum, pictures.values())) / len(numbers)
        plus = sum(map(all, pictures.values())) / len(pictures)
        points[task], counts[task] = 100 * (accuracy + plus), len(numbers)
        scores += [
            Score(f"{task}: accuracy", accuracy, len(numbers), chance=0.5),
            Score(f"{task}: accuracy+", plus, len(pictures), chance=0.25),
        ]
    sums = []
    for name, tasks in MME_TASKS.items():
        found = [task for task in tasks if task in points]
        count, unit = sum(counts[task] for task in found), f"of {200 * len(found)} points"
        if found:
            sums.append(Score(name, sum(points[task] for task in found), count, chance=75.0 * len(found), unit=unit))
    return [*sums, *scores]


def letter_of(question: Question, answer: str) -> str | None:
    """Return the option that an answer names: by the only letter among its words, or else by the only text in it.

    A lone A among more than three words is an article (the rule of VLMEvalKit without a judge).

    >>> which = Question("1", (), ("B",), options={"A": "a dog", "B": "a cat"})
    >>> letter_of(which, "(B)"), letter_of(which, "It is a cat."), letter_of(which, "A bird sits there")
    ('B', 'B', None)
    """
    words = [word for word in _BETWEEN.split(answer) if word]
    named = [letter for letter in question.options if letter in words]
    if len(named) == 1 and not (named == ["A"] and len(words) > 3):
        return named[0]
    held = [letter for letter, text in question.options.items() if text.lower() in answer.lower()]
    return held[0] if len(held) == 1 else None


def score_choices(questions: Sequence[Question], answers: Sequence[str]) -> list[Score]:
    """Score multiple choice: accuracy of all and by group; questions of one unit are right together or not at all.

    Answers that name no option are wrong, and how many name one is told; without options the texts are compared.

    Raises:
        ValueError: the numbers of questions and answers differ.
    """
    groups = by_group(questions, answers)
    letters = [letter_of(question, answer) for question, answer in zip(questions, answers, strict=True)]
    right = [
        letter in question.answers if question.options else is_right(answer, question.answers[0])
        for question, answer, letter in zip(questions, answers, letters, strict=True)
    ]
    asked = [i for i, question in enumerate(questions) if question.options]
    named = Score("answers that name an option", sum(letters[i] is not None for i in asked) / max(1, len(asked)),
                  len(asked))  # fmt: skip
    every = _accuracy("accuracy", questions, right, range(len(questions)))
    parts = [_accuracy(group, questions, right, numbers) for group, numbers in groups.items()]
    return [every, named, *(parts if len(parts) > 1 else [])]


def _accuracy(name: str, questions: Sequence[Question], right: Sequence[bool], numbers: Sequence[int]) -> Score:
    units: dict[str, list[int]] = {}
    for i in numbers:
        units.setdefault(questions[i].unit or questions[i].id, []).append(i)
    value = sum(all(right[i] for i in unit) for unit in units.values()) / len(units)
    luck = [prod(1 / len(questions[i].options) if questions[i].options else 0.0 for i in unit)
            for unit in units.values()]  # fmt: skip
    return Score(name, value, len(units), chance=sum(luck) / len(luck))


def ocrbench_is_right(question: Question, answer: str) -> bool:
    """Say whether an answer holds one of the right texts: without case, or for formulas (HME100k) without spaces.

    >>> ocrbench_is_right(Question("1", (), ("CENTRE",)), "It reads Centre.")
    True
    """
    if question.row.get("dataset_name") == "HME100k":
        texts = [text.strip().replace("\n", "").replace(" ", "") for text in (answer, *question.answers)]
    else:
        texts = [text.lower().strip().replace("\n", " ") for text in (answer, *question.answers)]
    return any(text in texts[0] for text in texts[1:])


def score_ocrbench(questions: Sequence[Question], answers: Sequence[str]) -> list[Score]:
    """Score texts read: all, the six kinds of recognition together, and every type.

    Raises:
        ValueError: the numbers of questions and answers differ.
    """
    groups = by_group(questions, answers)
    right = [ocrbench_is_right(question, answer) for question, answer in zip(questions, answers, strict=True)]
    read = [i for group in RECOGNITION for i in groups.get(group, [])]
    named = {"all": range(len(right)), "text recognition": read, **groups}
    return [
        Score(name, sum(right[i] for i in numbers) / len(numbers), len(numbers))
        for name, numbers in named.items()
        if numbers
    ]
