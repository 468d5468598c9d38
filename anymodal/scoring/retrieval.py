"""Which concept is drawn? The nearest one among the rendered truth of many, by pixels and by features."""

from collections.abc import Callable, Mapping, Sequence
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


def nearest_by_pixels(drawings: Sequence[Image.Image], candidates: Candidates) -> list[str]:
    """Name the candidate with the least mean squared error in pixels to each drawing."""
    return _nearest(drawings, candidates, lambda pixels: pixels.flatten(1), lambda a, b: -_squares(a, b))


def nearest_by_features(drawings: Sequence[Image.Image], candidates: Candidates) -> list[str]:
    """Name the candidate whose features have the greatest cosine with those of each drawing.

    Raises:
        ValueError: the package with the weights is not installed.
    """
    return _nearest(drawings, candidates, features, lambda a, b: F.normalize(a) @ F.normalize(b).mT)


def retrieve(
    drawings: Sequence[Image.Image], names: Sequence[str], candidates: Candidates, *, by: str = "pixels"
) -> Retrieval:
    """Find every drawing's nearest candidate; `names` are the concepts that were to be drawn, `by` pixels or features.

    Raises:
        ValueError: the numbers of drawings and names differ, or a name is no candidate.
    """
    if len(drawings) != len(names):
        raise ValueError(f"there must be one name a drawing, got {len(drawings)} drawings and {len(names)} names.")
    strange = [name for name in names if name not in candidates]
    if strange:
        raise ValueError(
            f"names must be among the {len(candidates)} candidates, {strange[0]!r} is not; add it to them."
        )
    if by not in ("pixels", "features"):
        raise ValueError(f"by must be 'pixels' or 'features', got {by!r}.")
    find = nearest_by_features if by == "features" else nearest_by_pixels
    return Retrieval(tuple(names), tuple(find(drawings, candidates)), len(candidates))


def _nearest(
    drawings: Sequence[Image.Image],
    candidates: Candidates,
    describe: Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b d"]],
    nearness: Callable[[Float[Tensor, "b d"], Float[Tensor, "k d"]], Float[Tensor, "b k"]],
) -> list[str]:
    if not drawings:
        return []
    names = list(candidates)
    near = nearness(describe(_stack(drawings)), describe(_stack(list(candidates.values()))))
    return [names[i] for i in near.argmax(dim=1).tolist()]


def _squares(a: Float[Tensor, "b d"], b: Float[Tensor, "k d"]) -> Float[Tensor, "b k"]:
    return torch.stack([(row - b).square().mean(dim=1) for row in a])


def _stack(pictures: Sequence[Image.Image]) -> Float[Tensor, "b 3 h w"]:
    return torch.stack([to_pixels(picture, SIDE, SIDE) for picture in pictures])
