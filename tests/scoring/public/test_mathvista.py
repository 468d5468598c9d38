import pytest

from anymodal.scoring.public.mathvista import extract, normalise, score_mathvista
from anymodal.scoring.public.questions import Question, lettered

CHOICE = Question("1", (), ("145°",), lettered(["140°", "145°"]), row={"answer_type": "text"})
WHOLE = Question("2", (), ("4",), row={"answer_type": "integer"})
REAL = Question("3", (), ("1.2",), row={"answer_type": "float", "precision": 1.0})
LIST = Question("4", (), ("[2, 4]",), row={"answer_type": "list"})


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        (CHOICE, "145°", True),
        (CHOICE, "B", True),
        (CHOICE, "(b)", True),
        (CHOICE, "The answer is (B) 145°", True),
        (CHOICE, 'So it is. The answer is "145°".', True),
        (CHOICE, "144°", False),  # as near to both: the first one
        (CHOICE, "A", False),
        (WHOLE, "4", True),
        (WHOLE, "4.0", True),
        (WHOLE, "From 1,004 balls 4 are left.", True),
        (WHOLE, "four", False),
        (WHOLE, "nan", False),
        (REAL, "1.24", True),
        (REAL, "d = 1.2 m", True),
        (REAL, "1.3", False),
        (LIST, "[2, 4]", True),
        (LIST, "2, 4", False),
    ],
)
def test_answers_are_compared_in_the_form_of_the_truth(question: Question, answer: str, right: bool) -> None:
    (score, _) = score_mathvista([question], [answer])
    assert score.value == right


def test_what_names_no_option_becomes_the_nearest() -> None:
    near = Question("1", (), ("kitten",), lettered(["sitting bull", "kitten"]), row={"answer_type": "text"})
    assert normalise(near, extract(near, "mitten")) == "kitten"


def test_tasks_and_chance() -> None:
    every, geometry, algebra = score_mathvista(
        [Question("1", (), ("x",), lettered(["x", "y"]), group="geometry"), Question("2", (), ("z",), group="algebra")],
        ["x", "a"],
    )
    assert (every.value, every.chance, geometry.value, algebra.value) == (0.5, 0.25, 1.0, 0.0)
