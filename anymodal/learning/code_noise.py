"""Code noise: drawings that are read with mistakes in them, as a model meets its own when it samples."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from anymodal.tokens.batch import IGNORE, Batch, moved


@dataclass(frozen=True)
class Drawn:
    """The codes that drawings are read on: flat positions, the document of each, and how many documents there are."""

    places: Int[Tensor, " c"]
    documents: Int[Tensor, " c"]
    num_documents: int

    @classmethod
    def of(cls, batch: Batch, code_of: Int[Tensor, " v"]) -> "Drawn | None":
        """Find them in a batch that is on the host; None where there are none."""
        if batch.documents is None:
            return None
        drawn = torch.zeros_like(batch.ids, dtype=torch.bool)
        drawn[:, 1:] = (batch.targets[:, :-1] != IGNORE) & (code_of[batch.ids[:, 1:]] >= 0)
        places = drawn.flatten().nonzero().flatten()
        if not len(places):
            return None
        return cls(places, batch.documents.flatten()[places], int(batch.documents.max()) + 1)

    def to(self, device: torch.device) -> "Drawn":
        """Move every tensor to `device`."""
        return Drawn(moved(self.places, device), moved(self.documents, device), self.num_documents)


def with_code_noise(ids: Int[Tensor, " n"], drawn: Drawn, most: float) -> Int[Tensor, " n"]:
    """Return the ids of a batch, some of the drawn codes among them exchanged with codes from elsewhere in the batch.

    Each document draws its own share from [0, most). A drawn code mostly follows from the codes before it; a model that
    always reads the truth draws its first codes from memory and never learns to heed the prompt, and when it samples it
    meets its own mistakes for the first time (exposure bias, arXiv:1506.03099).
    """
    codes = ids[drawn.places]
    shares = most * torch.rand(drawn.num_documents, device=ids.device)
    changed = torch.rand(codes.shape, device=ids.device) < shares[drawn.documents]
    elsewhere = codes[torch.randint(len(codes), codes.shape, device=ids.device)]
    return ids.index_copy(0, drawn.places, torch.where(changed, elsewhere, codes))
