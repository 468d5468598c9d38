import pytest
import torch

from anymodal.data.packing import pack
from anymodal.tokens.document import TokenSequence


def sequences(lengths: list[int]) -> list[TokenSequence]:
    return [
        TokenSequence(torch.arange(n) + 100 * i, torch.ones(n, dtype=torch.bool), ()) for i, n in enumerate(lengths)
    ]


def test_documents_fill_rows_whole() -> None:
    batch = pack(sequences([3, 8, 5, 2, 7, 4]), seq_len=10, pad_id=0, look_tokens=None)
    assert batch.documents is not None
    assert batch.ids.shape == (3, 10)
    assert batch.num_tokens == 29
    found = {}
    for number in batch.documents.unique().tolist():
        if number >= 0:
            ids = batch.ids[batch.documents == number]
            found[int(ids[0]) // 100] = ids.tolist()
    assert found == {i: [100 * i + j for j in range(n)] for i, n in enumerate([3, 8, 5, 2, 7, 4])}


def test_rows_are_as_long_as_the_fullest() -> None:
    assert pack(sequences([3, 2]), seq_len=50, pad_id=0, look_tokens=None).ids.shape == (1, 5)


def test_a_document_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="a document has 11 tokens, seq_len holds 10"):
        pack(sequences([11, 2]), seq_len=10, pad_id=0, look_tokens=None)
