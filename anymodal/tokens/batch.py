"""Batch: what the unified model reads in one forward pass."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from anymodal.tokens.document import TokenSequence

IGNORE = -100
PADDING = -1


@dataclass
class Batch:
    """Rows of ids with what is to be predicted and what is looked at.

    `targets[i, j]` is the id that position j predicts, or -100. `documents` tells which document a token belongs to (-1
    is padding); None means one document a row. Attention never crosses documents. `look_index` says where, in the
    flattened rows, the features of looked-at pictures stand.
    """

    ids: Int[Tensor, "b n"]
    targets: Int[Tensor, "b n"]
    positions: Int[Tensor, "b n"]
    documents: Int[Tensor, "b n"] | None = None
    look_pixels: Float[Tensor, "p 3 h w"] | None = None
    look_index: Int[Tensor, "p t"] | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Move every tensor to `device`."""
        return self._map(lambda tensor: moved(tensor, torch.device(device)))

    def pin_memory(self) -> "Batch":
        """Pin every tensor, for DataLoader."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in held.items() if value is not None})

    @property
    def num_tokens(self) -> int:
        """Tokens that are no padding."""
        return self.ids.numel() if self.documents is None else int((self.documents != PADDING).sum())


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on `device`; the host does not wait for what is on its way to a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def lay_out(rows: Sequence[Sequence[TokenSequence]], length: int, pad_id: int, look_tokens: int | None) -> Batch:
    """Lay sequences out one behind the other in rows of `length` tokens.

    Raises:
        ValueError: a row holds more than `length` tokens.
    """
    sequences = [sequence for row in rows for sequence in row]
    places = list(_places(rows, length))
    sizes = np.array([sequence.ids.numel() for sequence in sequences])  # arrays, which cost less than small tensors
    positions = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)
    where = np.repeat(np.array(places), sizes) + positions
    written = torch.cat([sequence.ids for sequence in sequences]).numpy()
    targets = np.full_like(written, IGNORE)
    wanted = torch.cat([sequence.loss for sequence in sequences]).numpy()[1:] & (positions[1:] > 0)
    targets[:-1][wanted] = written[1:][wanted]  # each position predicts the id behind it

    def laid(values: NDArray[np.int64], empty: int) -> Tensor:
        flat = np.full(len(rows) * length, empty)
        flat[where] = values
        return torch.from_numpy(flat).view(len(rows), length)

    pixels: list[Tensor] = []
    index: list[Tensor] = []
    for start, sequence in zip(places, sequences, strict=True):
        for offset, picture in sequence.looks:
            assert look_tokens is not None, "a sequence that looks needs a model with an understanding path"
            pixels.append(picture)
            index.append(torch.arange(look_tokens) + start + offset)
    looked = {"look_pixels": torch.stack(pixels), "look_index": torch.stack(index)} if pixels else {}
    return Batch(
        ids=laid(written, pad_id),
        targets=laid(targets, IGNORE),
        positions=laid(positions, 0),
        documents=laid(np.repeat(np.arange(len(sequences)), sizes), PADDING),
        **looked,
    )


def _places(rows: Sequence[Sequence[TokenSequence]], length: int) -> Iterator[int]:
    """Yield where each sequence starts in the flattened rows."""
    for row, sequences in enumerate(rows):
        start = 0
        for sequence in sequences:
            yield row * length + start
            start += sequence.ids.numel()
            if start > length:
                raise ValueError(
                    f"a row of {length} tokens cannot hold {start}; raise seq_len or shorten the documents."
                )


def pad(sequences: Sequence[TokenSequence], pad_id: int, look_tokens: int | None) -> Batch:
    """Put each sequence in a row of its own, padded on the right to the longest."""
    length = max(len(sequence.ids) for sequence in sequences)
    return lay_out([[sequence] for sequence in sequences], length, pad_id, look_tokens)
