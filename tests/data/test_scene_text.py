import random

from anymodal.data.canvas import Placed, Scene
from anymodal.data.scene_text import captions, questions

NAMES = ("dog", "red apple", "owl", "cat")


def ask(scene: Scene, seed: int = 0) -> dict[str, str]:
    return {entry["question"]: entry["answer"] for entry in questions(scene, random.Random(seed), NAMES)}


def test_captions_of_every_kind() -> None:
    dog, apple = Placed("dog", "left"), Placed("red apple", "right")
    assert captions(Scene("one", "white", (Placed("owl", "centre"),)))[0] == "an owl"
    assert "a red apple and a dog" in captions(Scene("two", "white", (dog, apple)))
    assert {"a dog left of a red apple", "a red apple right of a dog"} < set(
        captions(Scene("position", "white", (dog, apple)))
    )
    tiled = (dog._replace(tile="red"), apple._replace(tile="orange"))
    assert captions(Scene("binding", "white", tiled))[0] == "a dog on a red tile and a red apple on an orange tile"
    assert captions(Scene("colours", "green", tiled[:1]))[0] == "a dog on a red tile on a green background"
    corners = ("top left", "top right", "bottom left")
    three = tuple(Placed("red apple", cell) for cell in corners)
    assert captions(Scene("counting", "white", three))[:2] == ["three red apples", "there are three red apples"]


def test_captions_never_leave_the_number_open() -> None:
    assert "fish" not in captions(Scene("one", "white", (Placed("fish", "centre"),)))
    assert "owl" in captions(Scene("one", "white", (Placed("owl", "centre"),)))


def test_captions_above_and_below() -> None:
    found = captions(Scene("position", "white", (Placed("dog", "top"), Placed("cat", "bottom"))))
    assert {"a dog above a cat", "a cat below a dog", "a dog at the top and a cat at the bottom"} < set(found)


def test_captions_name_every_canvas_but_white() -> None:
    owl = (Placed("owl", "centre"),)
    assert all("blue background" in caption for caption in captions(Scene("one", "blue", owl)))
    assert all(
        "background" not in caption or "white background" in caption for caption in captions(Scene("one", "white", owl))
    )


def test_questions_of_a_binding() -> None:
    scene = Scene("binding", "pink", (Placed("dog", "top", "red"), Placed("cat", "bottom", "blue")))
    answers = ask(scene)
    assert answers["What colour is the tile of the dog?"] == "red"
    assert answers["What is on the blue tile?"] == "a cat"
    assert answers["Where is the cat?"] == "bottom"
    assert answers["What colour is the background?"] == "pink"
    assert answers["How many things are there?"] == "two"


def test_questions_say_yes_as_often_as_no() -> None:
    pair = (Placed("dog", "left"), Placed("cat", "right"))
    for seed in range(20):
        answers = ask(Scene("position", "white", pair), seed)
        given = list(answers.values())
        assert given.count("yes") == given.count("no") == 3
        subject, other = ("dog", "cat") if "Is the dog left of the cat?" in answers else ("cat", "dog")
        side, wrong = ("left", "right") if subject == "dog" else ("right", "left")
        assert answers[f"Is the {subject} {side} of the {other}?"] == "yes"
        assert answers[f"Is the {subject} {wrong} of the {other}?"] == "no"
        (absent,) = [question for question in answers if question.startswith("Is there") and answers[question] == "no"]
        assert absent in ("Is there a red apple?", "Is there an owl?")


def test_questions_of_counting() -> None:
    cells = ("top left", "top right", "bottom left", "bottom right")
    scene = Scene("counting", "white", tuple(map(Placed, ("dog", "dog", "owl", "dog"), cells)))
    answers = ask(scene)
    assert answers["How many dogs are there?"] == "three"
    assert answers["How many owls are there?"] == "one"
    assert answers["Are there three dogs?"] == "yes"
    assert answers["Where is the owl?"] == "bottom left"
    assert "Where is the dog?" not in answers
