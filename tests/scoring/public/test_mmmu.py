import random

import pytest

from anymodal.scoring.public.mmmu import SUBJECTS, mmmu_answers, mmmu_letter, open_is_right, score_mmmu
from anymodal.scoring.public.questions import Question, lettered

FOUR = Question("validation_Art_1", (), ("B",), lettered(["red", "a blue sky", "green", "grey"]), group="Art")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B) a blue sky", "B"),
        ("(A) is wrong, so (B)", "B"),
        ("either A or B of these", "B"),
        ("The best answer is a blue sky here", "B"),
        ("a blue sky", None),
        ("b", None),
        ("", None),
    ],
)
def test_the_option_named_last_counts(answer: str, letter: str | None) -> None:
    assert mmmu_letter(FOUR, answer) == letter


@pytest.mark.parametrize(
    ("answer", "truths", "right"),
    [
        ("36 watts", ["36"], True),
        ("1,200.004", ["1200"], True),
        ("The result is 3.5e2", ["350"], True),
        ("x = 12\nso the answer is 7", ["7"], True),
        ("x = 12\nso the answer is 7", ["12"], False),
        ("so the answer is 7\nx = 12", ["12"], True),
        ("first 12, so the answer is 7", ["12"], False),
        ("It is the Doric order.", ["doric"], True),
        ("It is the Doric order.", ["Ionic", "Doric"], True),
        ("gas", ["s"], False),
        ("it is s", ["s"], True),
        ("option s here", ["s"], True),
        ("", ["1"], False),
    ],
)
def test_open_answers_hold_texts_or_numbers(answer: str, truths: list[str], right: bool) -> None:
    assert open_is_right(answer, truths) is right


def test_what_names_no_option_is_guessed_as_the_authors_do() -> None:
    questions = [FOUR] * 3
    guesses = random.Random(42)
    wanted = [guesses.choice("ABCD"), "B", guesses.choice("ABCD")]
    assert mmmu_answers(questions, ["hm", "B", ""]) == wanted


def test_scores_by_hand() -> None:
    free = Question("validation_Math_1", (), ("7",), group="Math")
    every, named, *parts = score_mmmu([FOUR, FOUR, free], ["B", "(C)", "7"])
    assert every.count == 3
    assert [every.value, every.chance] == pytest.approx([2 / 3, 0.5 / 3])
    assert (named.value, named.count) == (1.0, 2)
    assert [(each.name, each.value, each.count) for each in parts] == [
        ("Art and Design", 0.5, 2), ("Science", 1.0, 1), ("Art", 0.5, 2), ("Math", 1.0, 1),
    ]  # fmt: skip
    assert sum(map(len, SUBJECTS.values())) == 30
