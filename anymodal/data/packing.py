"""Packing: documents to full rows, so that little of a batch is padding."""

from collections.abc import Sequence
from heapq import heapify, heappop, heapreplace
from itertools import accumulate
from operator import itemgetter

from anymodal.tokens.batch import Batch, lay_out
from anymodal.tokens.document import TokenSequence

SPARE = 0.01  # share of padding below which no better number of rows is looked for
MORE_ROWS = 8  # tried at most beyond the fewest


def pack(sequences: Sequence[TokenSequence], *, seq_len: int, pad_id: int, look_tokens: int | None) -> Batch:
    """Pack sequences into few rows of at most `seq_len` tokens, all of them nearly as long as the fullest.

    No token is cut off, no document is parted, and the same sequences give the same rows.

    Raises:
        ValueError: a sequence is longer than `seq_len`.
    """
    lengths = [sequence.ids.numel() for sequence in sequences]
    if max(lengths) > seq_len:
        raise ValueError(
            f"a document has {max(lengths)} tokens, seq_len holds {seq_len}; raise seq_len or leave the document out."
        )
    rows = level(lengths, seq_len)
    fullest = max(sum(lengths[i] for i in row) for row in rows)
    return lay_out([[sequences[i] for i in row] for row in rows], fullest, pad_id, look_tokens)


def level(lengths: Sequence[int], seq_len: int) -> list[list[int]]:
    """Share documents of these lengths, none above `seq_len`, among rows of at most `seq_len`; return their numbers.

    The fewest rows that hold them are taken, or some more where those leave less padding: sixteen documents of one
    length are four rows of four rather than six, five and five.

    >>> level([3, 8, 5, 2, 7, 4], 10)
    [[0, 4], [1, 3], [2, 5]]
    """
    total = sum(lengths)
    shortest = [0, *accumulate(sorted(lengths))]  # sums of the so many shortest
    best: list[list[int]] = []
    least = fewest = 0
    for count in range(-(-total // seq_len), len(lengths) + 1):
        if best and (count > fewest + min(fewest, MORE_ROWS) or total >= (1 - SPARE) * least):
            break
        held = -(-len(lengths) // count)  # so many documents are in some row, and in at least so many rows:
        crowded = len(lengths) - (held - 1) * count
        bound = -(-shortest[held * crowded] // crowded)  # the fullest of these holds no fewer tokens
        if bound > seq_len or (best and count * bound >= least):
            continue
        rows, fullest = _share(lengths, count)
        if fullest > seq_len:
            continue
        fewest = fewest or count
        if not best or len(rows) * fullest < least:
            best, least = rows, len(rows) * fullest
    return best


def _share(lengths: Sequence[int], count: int) -> tuple[list[list[int]], int]:
    """Share documents among `count` rows by the differencing method (Karmarkar and Karp, 1982); say the fullest, too.

    Each document begins as a division of its own. The two most uneven ones are joined again and again, the fullest row
    of one to the emptiest of the other.
    """
    heap = [(-length, i, [(length, [i])]) for i, length in enumerate(lengths)]
    heapify(heap)
    while len(heap) > 1:
        _, number, first = heappop(heap)
        second = heap[0][2]
        meeting = len(first) + len(second) - count  # rows of the first that meet no empty ones
        if meeting > 0:
            met = zip(first[-meeting:], second[: -meeting - 1 : -1], strict=True)
            joined = first[:-meeting] + second[:-meeting]
            joined += [(size + other, row + more) for (size, row), (other, more) in met]
        else:
            joined = first + second
        joined.sort(key=itemgetter(0), reverse=True)  # leaves equal ones in their order
        emptiest = joined[-1][0] if meeting >= 0 else 0
        heapreplace(heap, (emptiest - joined[0][0], number, joined))
    return sorted(sorted(row) for _, row in heap[0][2]), heap[0][2][0][0]
