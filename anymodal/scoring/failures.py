"""Failures as pictures: what was asked for, its truth, and what was drawn instead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from anymodal.data.sheet import contact_sheet

SIDE, COLUMNS = 128, 8
TITLE_HEIGHT = 26


@dataclass(frozen=True)
class Failure:
    """Hold a drawing that was judged wrong beside its truth; `why` tells what is wrong."""

    prompt: str
    truth: Image.Image
    drawn: Image.Image
    why: str


def failure_sheet(tables: Mapping[str, Sequence[Failure]], most: int = 24) -> Image.Image:
    """Show at most so many failures of each table: the truth over its prompt, then the drawing over what is wrong.

    Those shown stand at equal distances in the table, so that every kind comes.

    Raises:
        ValueError: there is no table.
    """
    if not tables:
        raise ValueError("a sheet of failures needs at least one table of drawings, got none.")
    shown = {title: failures[:: max(1, -(-len(failures) // most))] for title, failures in tables.items()}
    parts = {
        f"{title}: {len(shown[title])} of the {len(tables[title])} wrong": _pairs(shown[title]) for title in tables
    }
    font = ImageFont.load_default(size=14)
    width = max(part.width if part else 0 for part in parts.values())
    width = max(width, *(int(font.getlength(title)) + 8 for title in parts))
    height = sum(TITLE_HEIGHT + (part.height if part else 0) for part in parts.values())
    sheet = Image.new("RGB", (width, height), "white")
    draw, y = ImageDraw.Draw(sheet), 0
    for title, part in parts.items():
        draw.text((4, y + 4), title, fill="black", font=font)
        y += TITLE_HEIGHT
        if part:
            sheet.paste(part, (0, y))
            y += part.height
    return sheet


def _pairs(failures: Sequence[Failure]) -> Image.Image | None:
    if not failures:
        return None
    pictures = [
        picture.resize((SIDE, SIDE), Image.Resampling.NEAREST) for e in failures for picture in (e.truth, e.drawn)
    ]
    captions = [caption for each in failures for caption in (each.prompt, each.why)]
    return contact_sheet(pictures, columns=COLUMNS, captions=captions)
