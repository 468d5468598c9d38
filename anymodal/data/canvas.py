"""What a scene is and how it looks: emoji on the cells of a canvas, each optionally on a coloured tile."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from anymodal.data.emoji import picture

COLOURS = {
    "white": (255, 255, 255),
    "grey": (150, 152, 158),
    "red": (214, 45, 48),
    "orange": (247, 142, 30),
    "yellow": (252, 220, 72),
    "green": (62, 160, 80),
    "blue": (48, 106, 212),
    "purple": (132, 70, 184),
    "pink": (250, 160, 200),
}
# Where an object may stand: left, top and side in 64ths of the canvas; all multiples of 8, the token grid.
CELLS = {
    "centre": (8, 8, 48),
    "left": (0, 16, 32),
    "right": (32, 16, 32),
    "top": (16, 0, 32),
    "bottom": (16, 32, 32),
    "top left": (0, 0, 32),
    "top right": (32, 0, 32),
    "bottom left": (0, 32, 32),
    "bottom right": (32, 32, 32),
}
SIDES = (("left", "right"), ("top", "bottom"))
CORNERS = ("top left", "top right", "bottom left", "bottom right")
MARGIN = 2  # clear 64ths between an object and the border of its cell
# An outline pixel nearer than this to the colour behind it is lost; an object with too many lost ones is not put there.
NEAR = 85.0
MAX_LOST = 0.4


class Placed(NamedTuple):
    """Hold one object: which concept, in which cell, on a tile of which colour (None: on the canvas itself)."""

    name: str
    cell: str
    tile: str | None = None


@dataclass(frozen=True)
class Scene:
    """Describe one scene; `size` is its side in pixels.

    >>> scene = Scene("position", "white", (Placed("dog", "left"), Placed("rose", "right", "blue")))
    >>> picture = render(scene)
    >>> picture.size, picture.getpixel((0, 0)), picture.getpixel((33, 17)) == COLOURS["blue"]
    ((64, 64), (255, 255, 255), True)
    """

    kind: str
    background: str
    objects: tuple[Placed, ...]
    size: int = 64

    def truth(self) -> dict[str, Any]:
        """Return the ground truth as a sample's json holds it."""
        objects = [{"name": thing.name, "cell": thing.cell, "tile": thing.tile} for thing in self.objects]
        return {"kind": self.kind, "background": self.background, "objects": objects}

    @classmethod
    def from_truth(cls, truth: Mapping[str, Any], size: int = 64) -> "Scene":
        """Rebuild a scene from its ground truth."""
        return cls(truth["kind"], truth["background"], tuple(Placed(**thing) for thing in truth["objects"]), size)


@functools.lru_cache(maxsize=4096)
def fitted(name: str, side: int) -> Image.Image:
    """Return a concept's picture without its empty border, scaled to fit a square of `side` pixels (RGBA, centred)."""
    whole = picture(name)
    cut = whole.crop(whole.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox())
    scale = side / max(cut.size)
    cut = cut.resize((max(1, round(cut.width * scale)), max(1, round(cut.height * scale))), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return canvas


def render(scene: Scene) -> Image.Image:
    """Compose a scene as an RGB picture; an object alone on its canvas looks just as it does in the emoji set.

    Raises:
        ValueError: the size is no multiple of 32.
    """
    if scene.size < 32 or scene.size % 32:
        raise ValueError(f"a scene's size must be a multiple of 32 pixels, got {scene.size}: take 64")
    canvas = Image.new("RGB", (scene.size, scene.size), COLOURS[scene.background])
    for thing in scene.objects:
        if thing.cell == "centre" and thing.tile is None:  # alone on the canvas: as large as the emoji itself
            whole = picture(thing.name).resize((scene.size, scene.size), Image.Resampling.LANCZOS)
            canvas.paste(whole, (0, 0), whole)
            continue
        left, top, side = (value * scene.size // 64 for value in CELLS[thing.cell])
        if thing.tile is not None:
            canvas.paste(COLOURS[thing.tile], (left, top, left + side, top + side))
        margin = MARGIN * scene.size // 64 * (2 if thing.cell == "centre" else 1)
        cut = fitted(thing.name, side - 2 * margin)
        canvas.paste(cut, (left + margin, top + margin), cut)
    return canvas


@functools.lru_cache(maxsize=4096)
def stands_out(name: str, colour: str) -> bool:
    """Say whether a concept's outline is seen on a colour: a red apple is not on red."""
    pixels = np.asarray(fitted(name, 28)).astype(np.float64)
    solid = np.pad(pixels[..., 3] > 128, 1)
    inner = solid[:-2, 1:-1] & solid[2:, 1:-1] & solid[1:-1, :-2] & solid[1:-1, 2:]
    outline = pixels[..., :3][solid[1:-1, 1:-1] & ~inner]
    lost = np.linalg.norm(outline - np.array(COLOURS[colour]), axis=-1) < NEAR
    return bool(lost.mean() <= MAX_LOST)
