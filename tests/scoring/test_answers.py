import pytest
from PIL import Image

from anymodal.data.scenes import scene_samples
from anymodal.pipeline import Pipeline
from anymodal.scoring.answers import BATCH, Asked, ask, is_right, questions_of, score_answers

PICTURE = Image.new("RGB", (8, 8))


def test_questions_come_with_their_pictures() -> None:
    samples = list(scene_samples("train", count=3, seed=0, concepts=6))
    asked = questions_of(samples)
    assert {each.type for each in asked} >= {"count", "colour", "yes-no"}
    assert {each.image.size for each in asked} == {(64, 64)}


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("A  Dog.", "the dog", True),
        ("an apple", "apple", True),
        ("apples", "an apple", False),
        ("", "no", False),
        ("theatre", "the atre", False),
    ],
)
def test_answers_are_compared_without_case_and_article(answer: str, truth: str, right: bool) -> None:
    assert is_right(answer, truth) is right


def test_chance_is_the_commonest_answer() -> None:
    truths = [("two", "count"), ("two", "count"), ("three", "count"), ("yes", "yes-no")]
    asked = [Asked(PICTURE, "?", answer, kind) for answer, kind in truths]
    count, yes = score_answers(asked, ["two", "three", "Three.", "no"])
    assert (count.type, count.num_questions, count.share, count.chance) == ("count", 3, 2 / 3, 2 / 3)
    assert (yes.share, yes.chance) == (0.0, 1.0)
    with pytest.raises(ValueError, match="4 questions and 1 answers"):
        score_answers(asked, ["two"])


def test_asking_keeps_the_order_over_batches() -> None:
    class Echo(Pipeline):
        def __init__(self) -> None:
            self.sizes: list[int] = []

        def answer(self, image: object, question: object, **_: object) -> list[str]:
            assert isinstance(question, list)
            self.sizes.append(len(question))
            return [f"re {text}" for text in question]

    pipe = Echo()
    asked = [Asked(PICTURE, f"{i}", "", "what") for i in range(BATCH + 3)]
    assert ask(pipe, asked) == [f"re {i}" for i in range(BATCH + 3)]
    assert pipe.sizes == [BATCH, 3]
