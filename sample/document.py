"""Continue a document of text and pictures.

    anymodal sample document "a red apple" --want image --out apple
    anymodal sample document dog.png "What is this?" --want text

Words that name a picture file are read as pictures, all others as text. What the model writes is printed; pictures are
saved as OUT/000.png, ... beside OUT/document.json, which lists the parts in order. With --stream true, text is printed
as it comes, and OUT/growth.gif shows the pictures growing by rows.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anymodal.decoding.config import EngineConfig

if TYPE_CHECKING:
    from PIL import Image

    from anymodal.streaming import Event


def main(
    parts: list[str],
    *,
    model: str = "emoji",
    want: Literal["any", "text", "image"] = "any",
    out: Path = Path("document"),
    max_new_tokens: int | None = None,
    max_images: int = 4,
    stream: bool = False,
    negative_prompt: str | None = None,
    guidance_scale: float | None = None,
    image_guidance_scale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    native: bool = False,
    engine: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
) -> None:
    """Continue the document.

    Args:
        parts: text, and paths of pictures, in order.
        model: model folder, or the name of an embedded model.
        want: what to write; "any" lets the model choose.
        out: folder of what is written.
        max_new_tokens: longest text.
        max_images: most pictures that "any" draws.
        stream: show what is written while it is written.
        negative_prompt: what a picture is guided away from, for want "image".
        guidance_scale: weight of the document for pictures; the model's default without it.
        image_guidance_scale: weight of the document's pictures alone; the model's default without it.
        guidance_interval: from and up to which share of a picture guidance acts; all of it without.
        temperature: of text and codes; 0 takes the most likely ones.
        top_k: keep the k most likely ids; 0 keeps all.
        top_p: keep the fewest ids whose probability reaches p.
        height: of a picture, in pixels, for want "image".
        width: of a picture, in pixels, for want "image".
        seed: of what is written.
        device: cpu, cuda, ... or auto.
        dtype: float32, bfloat16 or int8 (of the weights, on a CPU), float64, stored or auto.
        allow_pickle: also read weights that are stored as pickles; only for folders whose makers you trust.
        native: multiply with a kernel that the system's C compiler builds, once.
        engine: how the sampler works.
    """
    import json
    import sys

    from anymodal.data.sheet import save_growth, save_pictures
    from anymodal.pipeline import from_pretrained
    from anymodal.streaming import TextPiece

    document = [read_part(part) for part in parts]
    pipe = from_pretrained(model, device=device, dtype=dtype, allow_pickle=allow_pickle, native=native, engine=engine)
    options: dict[str, Any] = {
        "want": want, "max_new_tokens": max_new_tokens, "max_images": max_images, "negative_prompt": negative_prompt,
        "guidance_scale": guidance_scale, "image_guidance_scale": image_guidance_scale,
        "guidance_interval": guidance_interval, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "height": height, "width": width, "seed": seed,
    }  # fmt: skip
    frames: list[Image.Image] = []

    def show(event: "Event") -> None:
        if isinstance(event, TextPiece):
            print(event.text, end="", flush=True)
        else:
            frames.append(event.image)
            print(f"\n[{event.rows} of {event.num_rows} rows]", end="\n" if event.done else "", flush=True)

    written = pipe.generate(document, on_event=show if stream else None, **options)
    drawn = [part for part in written if not isinstance(part, str)]
    paths = iter(save_pictures(drawn, out) if drawn else [])
    out.mkdir(parents=True, exist_ok=True)
    listed = [{"text": part} if isinstance(part, str) else {"image": next(paths).name} for part in written]
    (out / "document.json").write_text(json.dumps(listed, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if frames:
        save_growth(frames, out / "growth.gif")
    print("\n" * stream, end="")
    for part in listed:
        if "image" in part or not stream:
            print(part["text"] if "text" in part else out / part["image"])
    sys.stderr.write(pipe.usage.report("part", count=len(written)))


def read_part(part: str) -> "str | Image.Image":
    """Read a part that names a picture file; any other is text."""
    from anymodal.data.pictures import decode_picture

    is_picture = Path(part).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")
    return decode_picture(Path(part).read_bytes()) if is_picture else part
