from collections import Counter

from anymodal.data.emoji import concepts, find_concept
from anymodal.data.emoji_text import CATEGORIES, captions, category_of, questions


def test_captions() -> None:
    found = captions(find_concept("cup of coffee"))
    assert found[:3] == ["cup of coffee", "a cup of coffee", "a hot beverage"]
    assert found[3].startswith("cup of coffee, ")
    assert all(len(set(captions(concept))) == len(captions(concept)) for concept in concepts())


def test_questions_of_one_concept() -> None:
    asked = {(entry["question"], entry["answer"], entry["type"]) for entry in questions(find_concept("dog"))}
    assert {
        ("What is this?", "a dog", "what"),
        ("Which group is this from?", "animals and nature", "group"),
        ("Is this a dog?", "yes", "yes-no"),
        ("Is this an animal?", "yes", "yes-no"),
    } < asked
    assert questions(find_concept("dog")) == questions(find_concept("dog"))


def test_questions_say_yes_as_often_as_no_and_are_honest() -> None:
    answers = Counter[str]()
    flags = Counter[str]()
    for concept in concepts():
        for entry in questions(concept):
            if entry["type"] == "yes-no":
                answers[entry["answer"]] += 1
                for category in CATEGORIES:
                    if entry["question"] == f"Is this {category}?":
                        assert (entry["answer"] == "yes") == (category_of(concept) == category)
                flags[entry["answer"]] += entry["question"] == "Is this a flag?"
    assert answers["yes"] == answers["no"] > 4000 / 2
    assert 0.8 < flags["no"] / flags["yes"] < 1.25


def test_category_of() -> None:
    names = ("dog", "rose", "pizza", "flag of norway", "car", "paw prints", "teapot", "alarm clock")
    expected = ["an animal", "a plant", "food", "a flag", "a vehicle", None, None, "a clock"]
    assert [category_of(find_concept(name)) for name in names] == expected
