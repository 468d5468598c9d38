import pytest

from anymodal.data.english import counted, is_plural, listed, plural, with_article


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog", "a dog"),
        ("alien", "an alien"),
        ("unicorn", "a unicorn"),
        ("ewe", "a ewe"),
        ("hourglass", "an hourglass"),
        ("x-ray", "an x-ray"),
        ("scissors", "scissors"),
        ("bread", "bread"),
        ("three o'clock", "three o'clock"),
        ("flag of the united states", "the flag of the united states"),
        ("glass of milk", "a glass of milk"),
        ("eight-pointed star", "an eight-pointed star"),
    ],
)
def test_with_article(name: str, expected: str) -> None:
    assert with_article(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fox", "foxes"),
        ("bus", "buses"),
        ("mouse", "mice"),
        ("wolf", "wolves"),
        ("maple leaf", "maple leaves"),
        ("tropical fish", "tropical fish"),
        ("butterfly", "butterflies"),
        ("key", "keys"),
        ("tomato", "tomatoes"),
        ("flamingo", "flamingos"),
        ("cactus", "cactuses"),
        ("cup of coffee", "cups of coffee"),
        ("glasses", "glasses"),
    ],
)
def test_plural(name: str, expected: str) -> None:
    assert plural(name) == expected


def test_is_plural() -> None:
    names = ("grapes", "cactus", "wine glass", "rhinoceros", "person lifting weights")
    assert [is_plural(name) for name in names] == [True, False, False, False, False]


def test_counted_and_listed() -> None:
    assert (
        listed([counted("red apple", 3), counted("owl", 1), counted("dog", 2)])
        == "three red apples, an owl and two dogs"
    )
    assert listed(["a dog"]) == "a dog"
