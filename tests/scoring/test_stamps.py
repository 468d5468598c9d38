from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anymodal.pipeline import Pipeline
from anymodal.scoring.stamps import Stamp, names_it, read_stamps, score_stamps

SENTENCES = {"animals/dog": "A big, friendly dog.", "animals/cats": "Two cats!", "food/pear": "A pear."}


class OfRed(Pipeline):
    """Answer by the red of a picture's first pixel."""

    def __init__(self, answers: dict[int, str]) -> None:
        self.answers = answers

    def answer(self, image: Any, question: Any, **_: Any) -> list[str]:
        return [self.answers[each.getpixel((0, 0))[0]] for each in image]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for red, (name, sentence) in enumerate(SENTENCES.items()):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGBA", (8, 8), (red, 0, 0, 255)).save(path.with_suffix(".png"))
        path.with_suffix(".txt").write_text(f"{sentence}\nde.utf8=Etwas.\n", encoding="utf-8")
    Image.new("RGB", (8, 8)).save(tmp_path / "food" / "pear_mirror.png")
    (tmp_path / "food" / "apple.txt").write_text("An apple.", encoding="utf-8")  # drawn in SVG alone
    return tmp_path


def test_stamps_stand_beside_their_sentence(folder: Path) -> None:
    found = read_stamps(folder, 10, seed=0)
    assert [each.sentence for each in found] == ["Two cats!", "A big, friendly dog.", "A pear."]
    assert [each.image.getpixel((0, 0)) for each in found] == [(1, 0, 0), (0, 0, 0), (2, 0, 0)]
    assert len(read_stamps(folder, 2, seed=0)) == 2
    with pytest.raises(FileNotFoundError, match="apt-get install tuxpaint-stamps-default"):
        read_stamps(folder / "nowhere", 10, seed=0)


def test_answers_are_words_of_the_sentence() -> None:
    assert names_it("A friendly dog.", "A big, friendly dog.")
    assert names_it("a cat", "Two cats!")
    assert not names_it("a dog", "A dogma.")
    assert not names_it("", "A dog.")


def test_scores_stand_beside_chance_and_what_is_known() -> None:
    stamps = [Stamp(Image.new("RGB", (8, 8), (red, 0, 0)), text) for red, text in enumerate(SENTENCES.values())]
    every, known = score_stamps(OfRed({0: "a dog", 1: "a dog", 2: "an apple"}), stamps, ["dog", "cat"])
    assert (every.value, every.count) == (1 / 3, 3)
    assert every.chance == pytest.approx(2 / 9)
    assert every.ceiling == pytest.approx(2 / 3)
    assert (known.value, known.count, known.chance, known.ceiling) == (0.5, 2, 0.5, 1.0)
