"""What the shapes of a forward pass depend on, found on the host before the batch moves to its device."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from anymodal.model.transformer import Segments
from anymodal.tokens.batch import IGNORE, Batch, moved


@dataclass(frozen=True)
class Layout:
    """Where documents and targets stand in a batch.

    `longest` is the number of tokens of its longest document; `text` and `image` are the flat positions that predict
    text and image codes.

    >>> ids = torch.tensor([[7, 9, 8]])
    >>> layout = Layout.of(Batch(ids=ids, targets=ids, positions=ids - 7), code_of=torch.arange(10) - 9)
    >>> layout.longest, layout.text.tolist(), layout.image.tolist()
    (3, [0, 2], [1])
    """

    longest: int
    segments: Segments | None
    text: Int[Tensor, " t"]
    image: Int[Tensor, " c"]

    @classmethod
    def of(cls, batch: Batch, code_of: Int[Tensor, " v"]) -> "Layout":
        """Find what is where; of a batch that is on an accelerator already the host waits for it."""
        wanted = batch.targets.flatten().cpu()
        is_code = (code_of.cpu()[wanted.clamp(min=0)] >= 0) & (wanted != IGNORE)
        is_text = ~is_code & (wanted != IGNORE)
        found = cls(
            longest=int(batch.positions.max()) + 1,
            segments=None if batch.documents is None else Segments.of(batch.documents.cpu()),
            text=is_text.nonzero().flatten(),
            image=is_code.nonzero().flatten(),
        )
        return found.to(batch.targets.device)

    def to(self, device: torch.device) -> "Layout":
        """Move every tensor to `device`."""
        return Layout(
            longest=self.longest,
            segments=None if self.segments is None else self.segments.to(device),
            text=moved(self.text, device),
            image=moved(self.image, device),
        )
