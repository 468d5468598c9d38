"""The parts of the unified model that a stage of training names."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from anymodal.model.unified import AnyModal

OWNERS = {
    "understanding.": "understanding",
    "understanding.connector.": "connector",
    "transformer.": "transformer",
    "embedding.": "text_embedding",
    "head.": "text_head",
    "image_embedding.": "image_embedding",
    "image_aligner.": "image_embedding",
    "image_head.": "image_head",
    "place_embedding.": "place_embedding",
}
"""Which part a parameter belongs to, by how its name begins; the longest beginning says it."""

ROWS_OF_IMAGES = {"text_embedding": "image_embedding", "text_head": "image_head"}


@dataclass(frozen=True)
class Piece:
    """A parameter of a part, or the rows [`start`, `end`) of a matrix of which other rows belong to another part."""

    name: str
    parameter: nn.Parameter
    start: int = 0
    end: int | None = None

    @property
    def values(self) -> Tensor:
        """What the piece holds now."""
        return self.parameter.detach() if self.end is None else self.parameter.detach()[self.start : self.end]


def parts_of(model: AnyModal) -> dict[str, tuple[Piece, ...]]:
    """Return the parts of a model by name; every weight lies in exactly one.

    Heads that are shared are split: `image_embedding` and `image_head` are the rows of the image codes there, as they
    are matrices of their own where heads are decoupled. A head that is tied to its embedding belongs to the embedding.

    >>> from anymodal.model.config import AnyModalConfig
    >>> from anymodal.tokens.vocabulary import Vocabulary
    >>> vocabulary = Vocabulary.build(text_size=300, specials={"pad": 0}, codebook_size=64)
    >>> parts = parts_of(AnyModal(AnyModalConfig(), vocabulary))
    >>> [(piece.name, piece.start, piece.end) for piece in parts["image_head"]]
    [('head.weight', 300, 364)]
    """
    parts: dict[str, list[Piece]] = {}
    shared = model.config.heads == "shared"
    is_code = (model.code_of >= 0).cpu()
    for name, parameter in model.named_parameters():
        part = owner_of(name)
        if shared and part in ROWS_OF_IMAGES:
            for start, end, of_images in _runs(is_code):
                owner = ROWS_OF_IMAGES[part] if of_images else part
                parts.setdefault(owner, []).append(Piece(name, parameter, start, end))
        else:
            parts.setdefault(part, []).append(Piece(name, parameter))
    ordered = [part for part in dict.fromkeys(OWNERS.values()) if part in parts]
    return {part: tuple(parts[part]) for part in ordered}


def owner_of(name: str) -> str:
    """Return the part that a parameter of the model belongs to."""
    found = [start for start in OWNERS if name.startswith(start)]
    assert found, f"{name} belongs to no part; name one in OWNERS"
    return OWNERS[max(found, key=len)]


def _runs(flags: Bool[Tensor, " n"]) -> list[tuple[int, int, bool]]:
    """Return where runs of equal flags start and end, and their flag."""
    values, counts = torch.unique_consecutive(flags, return_counts=True)
    ends = counts.cumsum(0)
    return [(int(end - count), int(end), bool(value)) for value, count, end in zip(values, counts, ends, strict=True)]
