"""Read a drawn scene back without a model, and compare it with what was asked for.

The reader does not know the prompt. It explains a picture as the scene with the least squared error in pixels: every
cell of every arrangement is compared with each concept on each colour. What a caption leaves open does not count: "an
apple and a dog" is right in any arrangement, "an apple left of a dog" in one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anymodal.data.canvas import CELLS, COLOURS, CORNERS, MARGIN, SIDES, Placed, Scene, fitted, render

SIDE = 64
LAYOUTS = (("centre",), *SIDES)
Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Verdict:
    """Say what of a drawn scene is right: the concepts, how many of each, their tiles, their places, the canvas.

    >>> Verdict(concepts=True, count=True, tiles=True, position=False, background=True).right
    False
    """

    concepts: bool
    count: bool
    tiles: bool
    position: bool
    background: bool

    @property
    def right(self) -> bool:
        """Say whether everything is."""
        return not self.wrong

    @property
    def wrong(self) -> tuple[str, ...]:
        """Name what is not."""
        return tuple(name for name, right in vars(self).items() if not right)


@dataclass(frozen=True)
class SceneScores:
    """Hold the verdicts over a list of scenes.

    >>> good = Verdict(concepts=True, count=True, tiles=True, position=True, background=True)
    >>> SceneScores(("two",), (good,)).shares
    {'two': 1.0}
    """

    kinds: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def share(self) -> float:
        """Return the share of scenes that are right in everything."""
        return sum(verdict.right for verdict in self.verdicts) / max(1, len(self.verdicts))

    @property
    def mean(self) -> float:
        """Return the mean of the kinds' shares: the overall score of GenEval (arXiv:2310.11513)."""
        return sum(self.shares.values()) / max(1, len(self.shares))

    @property
    def shares(self) -> dict[str, float]:
        """Return that share for every kind of scene."""
        right = Counter(kind for kind, verdict in zip(self.kinds, self.verdicts, strict=True) if verdict.right)
        return {kind: right[kind] / count for kind, count in Counter(self.kinds).items()}


class SceneReader:
    """Read scenes of known concepts out of pictures.

    >>> from anymodal.data.canvas import render
    >>> scene = Scene("position", "white", (Placed("dog", "left"), Placed("rose", "right", "blue")))
    >>> SceneReader(["dog", "cat", "rose"]).read(render(scene)).objects == scene.objects
    True
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Know these concepts.

        Raises:
            ValueError: there is none.
        """
        if not names:
            raise ValueError("a reader of scenes needs concepts that it may find, got none.")
        self.names = tuple(names)

    def read(self, image: Image.Image) -> Scene:
        """Return the scene that explains a picture best; its kind is "drawn"."""
        found = np.asarray(image.convert("RGB").resize((SIDE, SIDE)), dtype=np.float32)
        explained = [self._in_cells(found, cells) for cells in LAYOUTS]
        explained += [self._in_corners(found), self._alone(found)]
        return min(explained, key=lambda pair: pair[0])[1]

    def _in_cells(self, found: Pixels, cells: Sequence[str]) -> tuple[float, Scene]:
        """Explain a picture by one object in each cell, each on a colour of its own."""
        errors, rest = [], np.ones((SIDE, SIDE), dtype=bool)
        for cell in cells:
            left, top, side = CELLS[cell]
            rest[top : top + side, left : left + side] = False
            errors.append(self._on_colours[side].errors(_crop(found, cell)).reshape(len(self.names), -1))
        canvas = np.square(found[rest][None] - _PALETTE[:, None]).sum(axis=(1, 2))
        ground = int(canvas.argmin())
        total, objects = float(canvas[ground]), []
        for cell, error in zip(cells, errors, strict=True):
            name, colour = np.unravel_index(int(error.argmin()), error.shape)
            total += float(error[name, colour])
            tile = None if colour == ground else _NAMES[colour]
            objects.append(Placed(self.names[name], cell, tile))
        return total, Scene("drawn", _NAMES[ground], tuple(objects), SIDE)

    def _in_corners(self, found: Pixels) -> tuple[float, Scene]:
        """Explain a picture by objects in some of the four corners of one canvas."""
        side = CELLS[CORNERS[0]][2]
        crops = [_crop(found, cell) for cell in CORNERS]
        filled = np.stack([self._on_colours[side].errors(crop).reshape(len(self.names), -1) for crop in crops])
        empty = np.stack([np.square(crop[None] - _PALETTE[:, None, None]).sum(axis=(1, 2, 3)) for crop in crops])
        errors = np.concatenate((filled, empty[:, None]), axis=1)  # corners x (concepts, none) x colours
        best = errors.min(axis=1)
        ground = int(best.sum(axis=0).argmin())
        chosen = errors[:, :, ground].argmin(axis=1)
        objects = [Placed(self.names[i], cell) for i, cell in zip(chosen, CORNERS, strict=True) if i < len(self.names)]
        return float(best[:, ground].sum()), Scene("drawn", _NAMES[ground], tuple(objects), SIDE)

    def _alone(self, found: Pixels) -> tuple[float, Scene]:
        """Explain a picture by one object that fills the canvas."""
        errors = self._filling.errors(found).reshape(len(self.names), -1)
        name, colour = np.unravel_index(int(errors.argmin()), errors.shape)
        return float(errors[name, colour]), Scene("drawn", _NAMES[colour], (Placed(self.names[name], "centre"),), SIDE)

    @cached_property
    def _on_colours(self) -> Mapping[int, "_Candidates"]:
        """Return every concept on every colour, for cells of each side."""
        sides = {CELLS[cell][2]: cell for cell in CELLS}
        rendered = {side: [_in_cell(n, cell, c) for n in self.names for c in _NAMES] for side, cell in sides.items()}
        return {side: _Candidates.of(images) for side, images in rendered.items()}

    @cached_property
    def _filling(self) -> "_Candidates":
        """Return every concept alone on a canvas of every colour."""
        alone = [Scene("one", colour, (Placed(name, "centre"),), SIDE) for name in self.names for colour in _NAMES]
        return _Candidates.of([render(scene) for scene in alone])


def compare(drawn: Scene, wanted: Scene) -> Verdict:
    """Compare what was read with what a caption of `wanted` asks for; places count where its captions tell them."""
    names, asked = ([thing.name for thing in scene.objects] for scene in (drawn, wanted))
    tiles = ([(thing.name, str(thing.tile)) for thing in scene.objects] for scene in (drawn, wanted))
    places = ({(thing.name, thing.cell) for thing in scene.objects} for scene in (drawn, wanted))
    return Verdict(
        concepts=set(names) == set(asked),
        count=Counter(names) == Counter(asked),
        tiles=Counter(next(tiles)) == Counter(next(tiles)),
        position=wanted.kind != "position" or next(places) == next(places),
        background=drawn.background == wanted.background,
    )


def score_scenes(images: Sequence[Image.Image], wanted: Sequence[Scene], reader: SceneReader) -> SceneScores:
    """Read every picture and compare it with the scene that it was to show.

    Raises:
        ValueError: the numbers of pictures and scenes differ.
    """
    if len(images) != len(wanted):
        raise ValueError(f"there must be one scene a picture, got {len(images)} pictures and {len(wanted)} scenes.")
    verdicts = [compare(reader.read(image), scene) for image, scene in zip(images, wanted, strict=True)]
    return SceneScores(tuple(scene.kind for scene in wanted), tuple(verdicts))


_NAMES = tuple(COLOURS)
_PALETTE = np.array([COLOURS[name] for name in _NAMES], dtype=np.float32)


def _in_cell(name: str, cell: str, colour: str) -> Image.Image:
    side = CELLS[cell][2]
    margin = MARGIN * (2 if cell == "centre" else 1)
    tile, cut = Image.new("RGB", (side, side), COLOURS[colour]), fitted(name, side - 2 * margin)
    tile.paste(cut, (margin, margin), cut)
    return tile


def _crop(found: Pixels, cell: str) -> Pixels:
    left, top, side = CELLS[cell]
    return found[top : top + side, left : left + side]


class _Candidates(NamedTuple):
    """Hold pictures of one size, a row each, and their squared lengths."""

    rows: Pixels
    lengths: Pixels

    @classmethod
    def of(cls, images: Sequence[Image.Image]) -> "_Candidates":
        """Lay out pictures."""
        rows = np.stack([np.asarray(image, dtype=np.float32).reshape(-1) for image in images])
        return cls(rows, np.square(rows).sum(axis=1))

    def errors(self, crop: Pixels) -> Pixels:
        """Return the squared error of a crop to every candidate."""
        flat = crop.reshape(-1)
        return self.lengths - 2 * (self.rows @ flat) + flat @ flat
