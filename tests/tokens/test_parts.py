from typing import Any

import pytest
import torch
from PIL import Image

from anymodal.tokens.parts import Codes, Draw, Look, Part, Say, Turn, as_turns

CODES = torch.zeros(2, 2, dtype=torch.long)


def roles(document: list[Part | Turn] | str, *, complete: bool = True) -> list[tuple[str, int]]:
    turns = as_turns(document, complete=complete)
    return [(turn.role, len(turn.parts)) for turn in turns if isinstance(turn, Turn)]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (["a dog", Draw(CODES)], [("user", 1), ("assistant", 1)]),
        ([Image.new("RGB", (4, 4)), "what?", " a dog"], [("user", 2), ("assistant", 1)]),
        (["say", Say("this"), "and", Draw(CODES)], [("user", 1), ("assistant", 3)]),
        ([Draw(CODES)], [("user", 0), ("assistant", 1)]),
    ],
)
def test_the_first_target_opens_the_answer(document: list[Part | Turn], expected: list[tuple[str, int]]) -> None:
    assert roles(document) == expected


def test_lone_text_is_a_plain_document() -> None:
    for document in ("a dog", ["a dog"], [Say("a dog")]):
        assert as_turns(document, complete=True) == [Say("a dog")]
    last = as_turns(["a", "b"], complete=True)[1]
    assert isinstance(last, Turn)
    assert last.parts == (Say("b"),)


def test_a_prompt_ends_in_an_open_answer() -> None:
    assert roles(["a dog", Look(CODES)], complete=False) == [("user", 2), ("assistant", 0)]
    open_turn = [Turn("user", ("a",)), Turn("assistant", ("b",))]
    assert as_turns(open_turn, complete=False) == open_turn
    assert roles([Turn("user", ("a",))], complete=False) == [("user", 1), ("assistant", 0)]


@pytest.mark.parametrize("document", [[], [Look(CODES)], ["a", Codes(CODES)]])
def test_a_document_without_a_target_is_refused(document: list[Part | Turn]) -> None:
    with pytest.raises(ValueError, match="a training document needs a target"):
        as_turns(document, complete=True)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="a list of parts or of turns, not of both"):
        as_turns([Turn("user", ("a",)), "b"], complete=True)
    turn: Any = object.__new__(Turn)  # around the type check of test runs
    for role, parts, message in (
        ("system", (), "must be 'user' or 'assistant', not 'system'"),
        ("user", "a", "a tuple"),
    ):
        turn.__dict__.update(role=role, parts=parts)
        with pytest.raises(ValueError, match=message):
            turn.__post_init__()
