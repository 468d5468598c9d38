"""Contact sheets: many pictures as one, with captions."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MARGIN = 4
LINE_HEIGHT = 13


def contact_sheet(
    images: Sequence[Image.Image], *, columns: int | None = None, captions: Sequence[str] = (), scale: int = 1
) -> Image.Image:
    """Lay pictures out in a grid, row by row, each enlarged `scale` times over its caption.

    Raises:
        ValueError: there is no picture.

    >>> contact_sheet([Image.new("RGB", (8, 8))] * 4, columns=2).size
    (28, 28)
    """
    if not images:
        raise ValueError("a contact sheet needs at least one picture, got none.")
    columns = columns or min(len(images), 8)
    width, height = (scale * max(image.size[side] for image in images) for side in (0, 1))
    font = ImageFont.load_default(size=10)
    lines = [_wrap(caption, width, font) for caption in captions]
    band = LINE_HEIGHT * max((len(wrapped) for wrapped in lines), default=0)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, rows * (height + MARGIN + band) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x = MARGIN + i % columns * (width + MARGIN)
        y = MARGIN + i // columns * (height + MARGIN + band)
        sheet.paste(image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST), (x, y))
        for number, line in enumerate(lines[i] if i < len(lines) else []):
            draw.text((x, y + height + 1 + number * LINE_HEIGHT), line, fill="black", font=font)
    return sheet


def save_pictures(images: Sequence[Image.Image], out: Path, captions: Sequence[str] = ()) -> list[Path]:
    """Write pictures as OUT/000.png, OUT/001.png, ... and, last, a contact sheet of all as OUT/sheet.png."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{number:03}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    contact_sheet(images, captions=captions, scale=2).save(out / "sheet.png")
    return [*paths, out / "sheet.png"]


def save_growth(frames: Sequence[Image.Image], path: Path, *, frame_ms: int = 120, scale: int = 4) -> None:
    """Write pictures as they grew as one moving picture (GIF), each enlarged `scale` times.

    Raises:
        ValueError: there is no frame.
    """
    if not frames:
        raise ValueError("a moving picture needs at least one frame, got none.")
    first, *others = [
        frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.NEAREST) for frame in frames
    ]
    first.save(path, save_all=True, append_images=others, duration=frame_ms, loop=0)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
