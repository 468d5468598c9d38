"""MMMU's reading of answers (arXiv:2311.16502): options by letter or text, open answers by their texts and numbers.

The rules are those of the authors' evaluator, so that it gives the figures that are given here.
"""

import random
import re
from collections.abc import Sequence

from anymodal.scoring.public.questions import Question, by_group
from anymodal.scoring.report import Score

SUBJECTS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power",
        "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip
GUESSES = 42  # the authors' seed
LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def mmmu_letter(question: Question, answer: str) -> str | None:
    """Return the option that an answer names last: as (B), else as a word, else by its text in more than five words.

    >>> which = Question("1", (), ("B",), options={"A": "a dog", "B": "a cat"})
    >>> mmmu_letter(which, "not (A) but (B)"), mmmu_letter(which, "B."), mmmu_letter(which, "a cat")
    ('B', 'B', None)
    """
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    answer = f" {answer} "
    places = {letter: answer.rfind(f"({letter})") for letter in question.options}
    if max(places.values()) < 0:
        places = {letter: answer.rfind(f" {letter} ") for letter in question.options}
    if max(places.values()) < 0 and len(answer.split()) > 5:
        places = {letter: answer.lower().rfind(text.lower()) for letter, text in question.options.items()}
    best = max(places, key=lambda letter: places[letter])
    return best if places[best] >= 0 else None


def mmmu_answers(questions: Sequence[Question], answers: Sequence[str]) -> list[str]:
    """Return what MMMU's evaluator takes: the letter that an answer names, or a guess; open answers as they are."""
    guesses = random.Random(GUESSES)
    return [
        (mmmu_letter(question, answer) or guesses.choice(list(question.options))) if question.options else answer
        for question, answer in zip(questions, answers, strict=True)
    ]


def score_mmmu(questions: Sequence[Question], answers: Sequence[str]) -> list[Score]:
    """Score multiple choice and open answers: all, every discipline and every subject.

    Answers that name no option are guessed, as the authors do; how many name one is told.

    Raises:
        ValueError: the numbers of questions and answers differ.
    """
    groups = by_group(questions, answers)
    taken = mmmu_answers(questions, answers)
    right = [
        answer in question.answers if question.options else open_is_right(answer, question.answers)
        for question, answer in zip(questions, taken, strict=True)
    ]
    asked = [i for i, question in enumerate(questions) if question.options]
    named = sum(mmmu_letter(questions[i], answers[i]) is not None for i in asked) / max(1, len(asked))

    def score(name: str, numbers: Sequence[int]) -> Score:
        luck = sum(1 / len(questions[i].options) for i in numbers if questions[i].options) / len(numbers)
        return Score(name, sum(right[i] for i in numbers) / len(numbers), len(numbers), chance=luck)

    fields = {name: [i for subject in subjects for i in groups.get(subject, [])] for name, subjects in SUBJECTS.items()}
    return [
        score("all", range(len(questions))),
        Score("answers that name an option", named, len(asked)),
        *(score(name, numbers) for name, numbers in fields.items() if numbers),
        *(score(name, numbers) for name, numbers in groups.items()),
    ]


def open_is_right(answer: str, truths: Sequence[str]) -> bool:
    """Say whether one of the right texts stands in an open answer, or one of the right numbers is among its numbers.

    >>> open_is_right("So the force is 1,200.004 N", ["1200"]), open_is_right("12 N", ["1200"])
    (True, False)
    """
    said = [value for text in _tails(answer) for piece in (text, *_numbers(text)) for value in _values(piece)]
    true = [value for truth in truths for value in _values(truth)]
    return any(
        a == b if isinstance(a, float) else isinstance(b, str) and b in a
        for a in said
        for b in true
    )  # fmt: skip


def _tails(answer: str) -> list[str]:
    """Return the shortest piece of every line that follows a word which leads to an answer; else the whole answer."""
    answer = answer.strip().strip(".").lower()
    lines = answer.split("\n")
    tails = []
    for number, line in enumerate(lines):
        leads = (*LEADS, "=") if number == len(lines) - 1 else LEADS
        shortest = ""
        for piece in (line.split(lead)[-1].strip() for lead in leads if lead in line):
            shortest = piece if not shortest or len(piece) < len(shortest) else shortest
        if shortest and shortest not in set(":,.!?;'"):
            tails.append(shortest)
    return tails or [answer]


def _numbers(text: str) -> list[str]:
    return [number for pattern in _NUMBERS for number in re.findall(pattern, text)]


def _values(text: str) -> list[str | float]:
    """Return a text as a number of two decimals where it is one; a single letter must stand beside a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
