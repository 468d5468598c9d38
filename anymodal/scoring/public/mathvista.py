"""MathVista's reading of answers (arXiv:2310.02255), by the rules that need no other model.

The authors let a large language model extract the answer from a response where rules do not. Here the last number, or
the option that is named, takes its place, so figures of long answers are not theirs; short answers read the same.
"""

import re
from collections.abc import Sequence

from anymodal.scoring.public.metrics import letter_of
from anymodal.scoring.public.questions import Question, by_group
from anymodal.scoring.report import Score


def extract(question: Question, response: str) -> str:
    """Return the answer that a response holds.

    >>> extract(Question("1", (), ("4",), row={"answer_type": "integer"}), "There are 4 left.")
    '4'
    """
    kind = question.row.get("answer_type")
    quoted = re.search(r'The answer is "(.*)"\.', response)
    if response in question.options.values():
        return response
    if kind in ("integer", "float") and _number(response) is None and quoted is None:
        numbers = re.findall(r"-?\d+(?:\.\d+)?", response.replace(",", ""))
        return numbers[-1] if numbers else response
    if quoted:
        return quoted.group(1)
    return letter_of(question, response) or response if question.options else response


def normalise(question: Question, extraction: str) -> str | None:
    """Turn an extracted answer into the form of the truth: the text of an option, or a number of its precision.

    What names no option becomes the nearest one by edit distance, as the authors do.

    >>> normalise(Question("1", (), ("1.2",), row={"answer_type": "float", "precision": 1.0}), "1.24")
    '1.2'
    """
    kind, texts = question.row.get("answer_type"), list(question.options.values())
    if question.options:
        marked = re.search(r"\(([a-zA-Z])\)", extraction)
        letter = marked.group(1).upper() if marked else extraction.strip()
        return question.options.get(letter) or min(texts, key=lambda text: _distance(letter, text))
    if kind not in ("integer", "float"):
        return extraction
    number = _number(extraction)
    if number is None:
        return None
    return str(int(number)) if kind == "integer" else str(round(number, int(question.row.get("precision") or 0)))


def score_mathvista(questions: Sequence[Question], answers: Sequence[str]) -> list[Score]:
    """Score answers by their normalised texts: all, and every task.

    Raises:
        ValueError: the numbers of questions and answers differ.
    """
    groups = by_group(questions, answers)
    right = [
        normalise(question, extract(question, answer)) in question.answers
        for question, answer in zip(questions, answers, strict=True)
    ]

    def score(name: str, numbers: Sequence[int]) -> Score:
        luck = sum(1 / len(questions[i].options) for i in numbers if questions[i].options) / len(numbers)
        return Score(name, sum(right[i] for i in numbers) / len(numbers), len(numbers), chance=luck)

    return [score("all", range(len(right))), *(score(name, numbers) for name, numbers in groups.items())]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _distance(a: str, b: str) -> int:
    """Count the letters to insert, drop or exchange that turn one text into another (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]
