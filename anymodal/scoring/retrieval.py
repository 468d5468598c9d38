"""Which concept is drawn? The nearest one among the rendered truth of many, by pixels and by features."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from anymodal.data.canvas import Placed, Scene, render
from anymodal.data.pictures import to_pixels
from anymodal.scoring.features import features

SIDE = 64
Candidates = Mapping[str, Image.Image]


@dataclass(frozen=True)
class Retrieval:
    """Hold which concept each drawing is nearest to, and which it should be.

    >>> Retrieval(("dog", "cat"), ("dog", "dog"), num_candidates=4).share
    0.5
    """

    wanted: tuple[str, ...]
    found: tuple[str, ...]
    num_candidates: int

    @property
    def right(self) -> tuple[bool, ...]:
        """Say of every drawing whether its own concept is the nearest."""
        return tuple(a == b for a, b in zip(self.wanted, self.found, strict=True))

    @property
    def share(self) -> float:
        """Return the share of drawings whose own concept is the nearest (top-1)."""
        return sum(self.right) / max(1, len(self.wanted))

    @property
    def chance(self) -> float:
        """Return what guessing would reach."""
        return 1 / self.num_candidates


def rendered(names: Sequence[str]) -> dict[str, Image.Image]:
    """Render the truth of every concept, alone on white: what its name asks for."""
    return {name: render(Scene("one", "white", (Placed(name, "centre"),), SIDE)) for name in names}


class Gallery:
    """Hold candidates, described once, by their pixels or their features, to look for the nearest to each drawing.

    By pixels the nearest has the least mean squared error, by features the greatest cosine.

    >>> truth = rendered(["dog", "cat", "rose"])
    >>> Gallery(truth).retrieve([truth["cat"]], ["cat"], among=["dog", "cat"]).share
    1.0
    """

    def __init__(self, candidates: Candidates, *, by: str = "pixels") -> None:
        """Describe the candidates.

        Raises:
            ValueError: there is none, `by` is neither "pixels" nor "features", or their package is not installed.
        """
        if by not in ("pixels", "features"):
            raise ValueError(f"by must be 'pixels' or 'features', got {by!r}.")
        if not candidates:
            raise ValueError("a gallery needs candidates, got none.")
        self.by = by
        self.places = {name: place for place, name in enumerate(candidates)}
        self.rows = self.describe(list(candidates.values()))

    def describe(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "b d"]:
        """Return what pictures are compared by."""
        pixels = stacked(pictures)
        return F.normalize(features(pixels).double()) if self.by == "features" else pixels.flatten(1).double()

    def nearest(self, drawings: Sequence[Image.Image], among: Sequence[str] | None = None) -> list[str]:
        """Name the candidate nearest to each drawing, of all or of those named in `among`.

        Raises:
            ValueError: `among` names what is no candidate.
        """
        names = self._known(self.places if among is None else among)
        if not drawings:
            return []
        rows, described = self.rows[[self.places[name] for name in names]], self.describe(drawings)
        near = 2 * described @ rows.mT - rows.square().sum(dim=1)  # to unit vectors the nearest is that of the cosine
        return [names[i] for i in near.argmax(dim=1).tolist()]

    def retrieve(
        self, drawings: Sequence[Image.Image], names: Sequence[str], among: Sequence[str] | None = None
    ) -> Retrieval:
        """Find every drawing's nearest candidate; `names` are the concepts that were to be drawn.

        Raises:
            ValueError: the numbers of drawings and names differ, or a name is no candidate.
        """
        if len(drawings) != len(names):
            raise ValueError(f"there must be one name a drawing, got {len(drawings)} drawings and {len(names)} names.")
        self._known(names)
        found = self.nearest(drawings, among)
        return Retrieval(tuple(names), tuple(found), len(self.places if among is None else among))

    def _known(self, names: Iterable[str]) -> list[str]:
        found = list(names)
        strange = [name for name in found if name not in self.places]
        if strange:
            raise ValueError(
                f"names must be among the {len(self.places)} candidates, {strange[0]!r} is not; add it to them."
            )
        return found


def stacked(pictures: Sequence[Image.Image], side: int = SIDE) -> Float[Tensor, "b 3 h w"]:
    """Return pictures as pixels in [-1, 1] of one size."""
    return torch.stack([to_pixels(picture, side, side) for picture in pictures])
