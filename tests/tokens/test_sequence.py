import numpy as np
import pytest
import torch

from anymodal.tokens.sequence import SequenceWriter

CODES = np.array([1000, 1001, 1002])


def spelled(text: str) -> list[int]:
    return list(text.encode())


def test_text_is_encoded_in_runs_of_one_kind_of_loss() -> None:
    runs: list[str] = []

    def encode(text: str) -> list[int]:
        runs.append(text)
        return spelled(text)

    writer = SequenceWriter(encode)
    writer.text("a", loss=False)
    writer.template(["b", [7], "c", ""], loss=False)
    writer.text("d", loss=True)
    writer.text("e", loss=False)
    sequence = writer.sequence()
    assert runs == ["ab", "c", "d", "e"]
    assert sequence.ids.tolist() == [*spelled("ab"), 7, *spelled("cde")]
    assert sequence.loss.tolist() == [False] * 4 + [True, False]


def test_pictures_and_looks_stand_in_their_places() -> None:
    writer, head, tail, look = SequenceWriter(spelled), [5], [8, 6], [9, 9]
    writer.text("a", loss=False)
    writer.picture(head, CODES, tail, loss=True)
    writer.add([2], loss=True)
    writer.look(look, torch.zeros(3, 4, 4))
    writer.picture(head, CODES[:1], tail, loss=False)
    sequence = writer.sequence()
    assert sequence.ids.tolist() == [97, 5, 1000, 1001, 1002, 8, 6, 2, 9, 9, 5, 1000, 8, 6]
    assert sequence.loss.tolist() == [False] + [True] * 7 + [False] * 6
    assert [start for start, _ in sequence.looks] == [8]
    assert (head, tail, look) == ([5], [8, 6], [9, 9]), "what is handed in stays as it is"


def test_the_first_id_is_no_target() -> None:
    writer = SequenceWriter(spelled)
    writer.text("ab", loss=True)
    assert writer.sequence().loss.tolist() == [False, True]


@pytest.mark.parametrize("written", [[], [1, 2]])
def test_ids_are_whole_numbers(written: list[int]) -> None:
    writer = SequenceWriter(spelled)
    writer.add(written, loss=False)
    sequence = writer.sequence()
    assert sequence.ids.dtype == torch.long
    assert sequence.loss.dtype == torch.bool
    assert sequence.ids.tolist() == written
