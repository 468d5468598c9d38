import pytest

from anymodal.scoring.public.metrics import (
    letter_of,
    mme_says,
    ocrbench_is_right,
    pope_says_yes,
    score_choices,
    score_mme,
    score_ocrbench,
    score_pope,
)
from anymodal.scoring.public.questions import Question, lettered


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("yes", True),
        ("No", False),
        ("no, there is none", False),
        ("There is not. Yes", False),
        ("It is. There is no dog.", True),
        ("NO", True),
        ("nothing", True),
        ("", True),
    ],
)
def test_pope_reads_the_first_sentence(answer: str, yes: bool) -> None:
    assert pope_says_yes(answer) is yes


def test_pope_by_hand() -> None:
    truths = ["yes", "yes", "yes", "no", "no"]
    answers = ["Yes.", "yes", "no", "yes", "No, there is not."]
    questions = [Question(f"{i}", (), (truth,), group="random") for i, truth in enumerate(truths)]
    scores = {score.name: score for score in score_pope(questions, answers)}
    # two right of three said, two found of three there
    assert [scores[f"random: {name}"].value for name in ("accuracy", "precision", "recall", "F1", "yes said")] == (
        pytest.approx([3 / 5, 2 / 3, 2 / 3, 2 / 3, 3 / 5])
    )
    assert scores["random: accuracy"].chance == 3 / 5
    assert "accuracy, mean" not in scores


def test_pope_means_its_ways_and_stands_a_model_that_never_says_yes() -> None:
    questions = [Question(f"{i}", (), ("yes",), group=group) for i, group in enumerate(("random", "popular"))]
    accuracy, f1, *others = score_pope(questions, ["yes", "no"])
    assert (accuracy.name, accuracy.value, accuracy.count) == ("accuracy, mean", 0.5, 2)
    assert (f1.value, others[-3].value, others[-3].name) == (0.5, 0.0, "popular: recall")


@pytest.mark.parametrize(("answer", "said"), [("Yes", "yes"), (" no", "no"), ("Not sure", "no"), ("It is", "other")])
def test_mme_reads_four_letters(answer: str, said: str) -> None:
    assert mme_says(answer) == said


def test_mme_by_hand() -> None:
    questions = [
        Question(f"{task}{picture}{truth}", (), (truth,), group=task, unit=f"{task}{picture}")
        for task in ("count", "code_reasoning")
        for picture in range(2)
        for truth in ("yes", "no")
    ]
    perception, cognition, *tasks = score_mme(questions, ["yes", "no", "yes", "yes", "no", "no", "no", "no"])
    assert [(each.name, each.value, each.chance) for each in tasks] == [
        ("count: accuracy", 0.75, 0.5), ("count: accuracy+", 0.5, 0.25),
        ("code_reasoning: accuracy", 0.5, 0.5), ("code_reasoning: accuracy+", 0.0, 0.25),
    ]  # fmt: skip
    assert (perception.value, perception.unit, perception.chance) == (125.0, "of 200 points", 75)
    assert perception.describe().endswith(" 125 of 200 points of 4, chance 75 of 200 points")
    assert (cognition.value, cognition.count) == (50.0, 4)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B) a cat", "B"),
        ("A", "A"),
        ("Answer: A.", "A"),
        ("A cat is what I see", "B"),
        ("A or B", None),
        ("a dog, not a cat", None),
        ("b", None),
        ("", None),
    ],
)
def test_an_option_is_named_by_letter_or_text(answer: str, letter: str | None) -> None:
    assert letter_of(Question("1", (), ("A",), options=lettered(["a dog", "a cat"])), answer) == letter


def test_choices_in_every_order_by_hand() -> None:
    options = lettered(["a dog", "a cat"])
    questions = [
        Question("1", (), ("A",), options, group="animals", unit="1"),
        Question("1000001", (), ("B",), options, group="animals", unit="1"),
        Question("2", (), ("A",), options, group="things", unit="2"),
        Question("1000002", (), ("B",), options, group="things", unit="2"),
        Question("3", (), ("two",), group="things"),
    ]
    every, named, animals, things = score_choices(questions, ["A", "B", "A", "", "Two."])
    assert every.count == 3
    assert [every.value, every.chance] == pytest.approx([2 / 3, (0.25 + 0.25 + 0) / 3])
    assert (named.value, named.count) == (0.75, 4)
    assert [(each.name, each.value, each.count) for each in (animals, things)] == [
        ("animals", 1.0, 1),
        ("things", 0.5, 2),
    ]
    with pytest.raises(ValueError, match="5 questions and 1 answers"):
        score_choices(questions, ["A"])


def test_ocrbench_holds_a_text() -> None:
    formula = Question("1", (), ("x ^ 2",), row={"dataset_name": "HME100k"})
    assert ocrbench_is_right(formula, "It is x^2 .")
    assert not ocrbench_is_right(formula, "X^2")
    words = Question("2", (), ("new\nyork", "NYC"), group="Regular Text Recognition")
    assert ocrbench_is_right(words, "New York")
    scores = score_ocrbench([words, Question("3", (), ("7",), group="Doc-oriented VQA")], ["nyc!", "eight"])
    assert [(each.name, each.value, each.count) for each in scores] == [
        ("all", 0.5, 2),
        ("text recognition", 1.0, 1),
        ("Regular Text Recognition", 1.0, 1),
        ("Doc-oriented VQA", 0.0, 1),
    ]
