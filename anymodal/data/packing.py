"""Packing: documents to full rows, so that little of a batch is padding."""

from collections.abc import Sequence

from anymodal.tokens.batch import Batch, lay_out
from anymodal.tokens.document import TokenSequence


def pack(sequences: Sequence[TokenSequence], *, seq_len: int, pad_id: int, look_tokens: int | None) -> Batch:
    """Pack sequences into rows of at most `seq_len` tokens, longest first into the fullest row that holds it.

    No token is cut off. Rows are as long as the fullest one.

    Raises:
        ValueError: a sequence is longer than `seq_len`.
    """
    longest = max(len(sequence.ids) for sequence in sequences)
    if longest > seq_len:
        raise ValueError(
            f"a document has {longest} tokens, seq_len holds {seq_len}; raise seq_len or leave the document out."
        )
    rows: list[list[TokenSequence]] = []
    room: list[int] = []
    for sequence in sorted(sequences, key=lambda sequence: -len(sequence.ids)):
        length = len(sequence.ids)
        fitting = [(room[i], i) for i in range(len(rows)) if room[i] >= length]
        if fitting:
            i = min(fitting)[1]
            rows[i].append(sequence)
            room[i] -= length
        else:
            rows.append([sequence])
            room.append(seq_len - length)
    return lay_out(rows, seq_len - min(room), pad_id, look_tokens)
