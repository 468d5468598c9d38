"""Continue a document of text and pictures.

    anymodal sample document "a red apple" --want image --out apple
    anymodal sample document dog.png "What is this?" --want text

Words that name a picture file are read as pictures, all others as text. What the model writes is printed; pictures are
saved as OUT/000.png, ... beside OUT/document.json, which lists the parts in order. With --stream true, text is printed
as it comes, and OUT/growth.gif shows the pictures growing by rows.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from anymodal.decoding.config import EngineConfig, Native, Options

if TYPE_CHECKING:
    from PIL import Image

    from anymodal.streaming import Event


def main(
    parts: list[str],
    *,
    model: str = "emoji",
    out: Path = Path("document"),
    stream: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    native: Native = "auto",
    engine: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
    **options: Unpack[Options],
) -> None:
    """Continue the document.

    Args:
        parts: text, and paths of pictures, in order.
        model: model folder, or the name of an embedded model.
        out: folder of what is written.
        stream: show what is written while it is written.
        device: cpu, cuda, ... or auto.
        dtype: float32, bfloat16 or int8 (of the weights, on a CPU), float64, stored or auto.
        allow_pickle: also read weights that are stored as pickles; only for folders whose makers you trust.
        native: sample with a kernel that the system's C compiler builds, once; auto: where it can, on a CPU.
        engine: how the sampler works.
    """
    import json

    from anymodal.data.sheet import save_growth, save_pictures
    from anymodal.pipeline import from_pretrained
    from anymodal.streaming import PictureRows

    document = [read_part(part) for part in parts]
    pipe = from_pretrained(model, device=device, dtype=dtype, allow_pickle=allow_pickle, native=native, engine=engine)
    events: list[Event] = []
    written = pipe.generate(document, on_event=partial(show, events=events) if stream else None, **options)
    drawn = [part for part in written if not isinstance(part, str)]
    paths = iter(save_pictures(drawn, out) if drawn else [])
    out.mkdir(parents=True, exist_ok=True)
    listed = [{"text": part} if isinstance(part, str) else {"image": next(paths).name} for part in written]
    (out / "document.json").write_text(json.dumps(listed, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if frames := [event.image for event in events if isinstance(event, PictureRows)]:
        save_growth(frames, out / "growth.gif")
    for part in listed:
        if "image" in part or not stream:
            print(part["text"] if "text" in part else out / part["image"])
    sys.stderr.write(pipe.usage.report("part", count=len(written)))


def show(event: "Event", events: "list[Event]") -> None:
    """Print a piece of text, or how far a picture is, and remember it."""
    from anymodal.streaming import TextPiece

    events.append(event)
    if isinstance(event, TextPiece):
        print(event.text, end="", flush=True)
    else:
        print(f"\r{event.rows} of {event.num_rows} rows", end="\n" if event.done else "", file=sys.stderr, flush=True)


def read_part(part: str) -> "str | Image.Image":
    """Read a part that names a picture file; any other is text."""
    from anymodal.data.pictures import read_picture

    is_picture = Path(part).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")
    return read_picture(Path(part)) if is_picture else part
