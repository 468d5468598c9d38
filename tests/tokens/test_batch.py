import pytest
import torch

from anymodal.tokens.batch import IGNORE, lay_out, pad
from anymodal.tokens.document import TokenSequence


def sequence(first: int, length: int, look: int | None = None) -> TokenSequence:
    looks = () if look is None else ((look, torch.full((3, 4, 4), float(first))),)
    return TokenSequence(torch.arange(first, first + length), torch.arange(length) >= 2, looks)


def test_rows_hold_documents_one_behind_the_other() -> None:
    rows = [[sequence(10, 3), sequence(20, 4, look=1)], [sequence(30, 5, look=2)]]
    batch = lay_out(rows, 8, pad_id=0, look_tokens=2)
    assert batch.ids.tolist() == [[10, 11, 12, 20, 21, 22, 23, 0], [30, 31, 32, 33, 34, 0, 0, 0]]
    none = IGNORE
    assert batch.targets[0].tolist() == [none, 12, none, none, 22, 23, none, none]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 0, 0, 0]]
    assert batch.documents is not None
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1, 1, 1, -1], [2, 2, 2, 2, 2, -1, -1, -1]]
    assert batch.look_index is not None
    assert batch.look_index.tolist() == [[4, 5], [10, 11]]
    assert batch.look_pixels is not None
    assert batch.look_pixels[:, 0, 0, 0].tolist() == [20, 30]
    assert batch.num_tokens == 12


def test_padding_gives_every_sequence_a_row() -> None:
    batch = pad([sequence(10, 3), sequence(20, 5)], 7, None)
    assert batch.ids.tolist() == [[10, 11, 12, 7, 7], [20, 21, 22, 23, 24]]
    assert batch.look_pixels is None
    moved = batch.to("meta")
    assert moved.ids.device.type == "meta"
    assert moved.look_index is None


def test_targets_are_the_next_ids_that_carry_loss() -> None:
    loss = torch.tensor([False, True, False, True])
    batch = pad([TokenSequence(torch.tensor([5, 6, 7, 8]), loss, ())] * 2, 0, None)
    assert batch.targets.tolist() == [[6, IGNORE, 8, IGNORE]] * 2, "none predicts the first id of the next document"


def test_a_row_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 4 tokens cannot hold 5"):
        lay_out([[sequence(0, 3), sequence(0, 2)]], 4, 0, None)
