"""One document as ids, and how it is put together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """One document as ids.

    Attributes:
        ids: at a picture that the understanding path reads, the special `look`, once a feature.
        loss: is this id a target.
        looks: where the ids of a looked-at picture start, and its pixels [3, h, w], in order.

    >>> TokenSequence(torch.tensor([1, 5]), torch.tensor([False, True]), ()).ids.tolist()
    [1, 5]
    """

    ids: Int[Tensor, " n"]
    loss: Bool[Tensor, " n"]
    looks: tuple[tuple[int, Tensor], ...]


class SequenceWriter:
    """Collect ids and losses; text waits until its run ends, so that joined strings are encoded as one.

    >>> writer = SequenceWriter(lambda text: list(text.encode()))
    >>> writer.text("a", loss=False)
    >>> writer.text("b", loss=True)
    >>> writer.sequence().ids.tolist(), writer.sequence().loss.tolist()
    ([97, 98], [False, True])
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        """Begin an empty sequence; `encode` gives the ids of a text."""
        self._encode = encode
        self._pieces: list[list[int] | NDArray[np.int64]] = []
        self._ids: list[int] = []  # behind the pieces
        self._length = 0  # of all
        self._targets: list[slice] = []
        self._looks: list[tuple[int, Tensor]] = []
        self._waiting, self._waiting_loss = "", False

    def add(self, ids: Sequence[int], *, loss: bool) -> None:
        """Write ids."""
        if self._waiting:
            self._flush()
        self._ids += ids
        self._count(len(ids), loss)

    def text(self, text: str, *, loss: bool) -> None:
        """Write text, joined with the text before it where both or neither carry loss."""
        if loss != self._waiting_loss:
            self._flush()
            self._waiting_loss = loss
        self._waiting += text

    def template(self, entries: Sequence[Sequence[int] | str], *, loss: bool) -> None:
        """Write ids and literal text."""
        for entry in entries:
            if isinstance(entry, str):
                self.text(entry, loss=loss)
            else:
                self.add(entry, loss=loss)

    def picture(self, head: list[int], codes: NDArray[np.int64], tail: list[int], *, loss: bool) -> None:
        """Write the ids of a picture's codes and what frames them."""
        self._flush()
        self._pieces += [self._ids + head, codes]  # the many ids of a picture stay an array
        self._ids = [*tail]
        self._count(len(head) + len(codes) + len(tail), loss)

    def look(self, ids: Sequence[int], pixels: Tensor) -> None:
        """Write ids in whose places the features of a looked-at picture stand."""
        self._flush()
        self._looks.append((self._length, pixels))
        self.add(ids, loss=False)

    def sequence(self) -> TokenSequence:
        """Return what has been written."""
        self._flush()
        ids = np.concatenate([*self._pieces, self._ids], dtype=np.int64, casting="unsafe")  # an empty list is of floats
        loss = np.zeros(self._length, dtype=np.bool_)
        for run in self._targets:
            loss[run] = True
        loss[:1] = False  # nothing stands before the first id that could predict it
        return TokenSequence(torch.from_numpy(ids), torch.from_numpy(loss), tuple(self._looks))

    def _flush(self) -> None:
        if self._waiting:
            text, self._waiting = self._waiting, ""
            self.add(self._encode(text), loss=self._waiting_loss)

    def _count(self, added: int, loss: bool) -> None:
        if loss:
            self._targets.append(slice(self._length, self._length + added))
        self._length += added
