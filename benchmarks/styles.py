"""Show a model the emoji that it knows as other artists draw them: what its tokenizer keeps, and whether it names them.

    for set in noto noto-v1 twemoji openmoji emojione fluent-emoji-flat; do npm pack @iconify-json/$set; done
    pip install resvg_py
    python benchmarks/styles.py iconify-json-*.tgz --readme

A package holds the pictures of a set as SVG, by code point. Of the names that the model was trained on, those that a
set has are drawn on white; what is it, is asked of the hundred things that scenes are made of.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any, cast

import torch
from figures import publish
from PIL import Image
from provenance import provenance
from trials import ROOT

import anymodal
from anymodal.data.emoji import Concept, concepts, picture, scene_names, split_of_concept
from anymodal.data.pictures import to_pixels
from anymodal.pipeline import Pipeline
from anymodal.scoring.answers import Asked, ask, is_right
from anymodal.scoring.reconstruction import measure

QUESTION, SIZE, THINGS = "What is this?", 64, 100
OWN = "the set that it was trained on"
VARIATION = "-fe0f"  # a character that asks for the coloured picture, which not every set writes
FILES = ("package/icons.json", "package/chars.json", "package/info.json")

Pictures = dict[Concept, Image.Image]


def own() -> Pictures:
    """Return the pictures that the model was trained on."""
    return {each: on_white(picture(each)) for each in concepts() if split_of_concept(each) == "train"}


def drawn_by_others(path: Path, known: Sequence[Concept]) -> tuple[str, Pictures]:
    """Return the title of a package, and its pictures of what is `known`.

    Raises:
        ValueError: it is no package of a set.
    """
    with tarfile.open(path) as archive:
        members = {name: archive.extractfile(name) for name in archive.getnames() if name in FILES}
        if set(members) != set(FILES):
            raise ValueError(f"{path} must hold {', '.join(FILES)}; make it with `npm pack @iconify-json/...`.")
        icons, names, about = (json.load(cast(io.BufferedReader, members[name])) for name in FILES)
    pictures = {}
    for concept in known:
        icon = _icon(icons, names, concept)
        if icon is not None:
            pictures[concept] = on_white(rendered({**_sides(icons), **icon}))
    return f"{about['name']} ({about['license']['spdx']})", pictures


def _icon(icons: dict[str, Any], names: dict[str, str], concept: Concept) -> dict[str, Any] | None:
    """Find a picture by its code, or by its name where a set has no codes."""
    code = concept.code.lower().replace("_", "-")
    by_code = [names[key] for key in (code, code.replace(VARIATION, ""), code + VARIATION) if key in names]
    name = [*by_code, concept.name.replace(" ", "-")][0]
    return icons["icons"].get(icons.get("aliases", {}).get(name, {}).get("parent", name))


def _sides(icons: dict[str, Any]) -> dict[str, int]:
    return {"left": 0, "top": 0, "width": icons.get("width", 16), "height": icons.get("height", 16)}


def rendered(icon: dict[str, Any]) -> Image.Image:
    """Return a drawing as a picture of 64 x 64 RGBA pixels."""
    import resvg_py  # noqa: PLC0415  (wanted here alone)

    box = " ".join(str(icon[key]) for key in ("left", "top", "width", "height"))
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {spaces} viewBox="{box}" width="{SIZE}" height="{SIZE}">{icon["body"]}</svg>'
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")


def on_white(image: Image.Image) -> Image.Image:
    """Return a picture as the model saw those of names that stand alone."""
    image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS) if image.size != (SIZE, SIZE) else image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def score(pipe: Pipeline, title: str, pictures: Pictures) -> dict[str, Any]:
    """Measure what the image tokenizer keeps of pictures, and how many of the hundred things are named."""
    pixels = torch.stack([to_pixels(each, SIZE, SIZE) for each in pictures.values()])
    things = {concept: image for concept, image in pictures.items() if concept.name in scene_names()[:THINGS]}
    asked = [Asked(image, QUESTION, concept.with_article, "what") for concept, image in things.items()]
    answers = ask(pipe, asked)
    right = [is_right(answer, each.answer) for answer, each in zip(answers, asked, strict=True)]
    lucky = mean(is_right(answer, each.answer) for answer in answers for each in asked)
    assert pipe.image_tokenizer is not None, "an embedded model looks and draws"
    kept = asdict(measure(pipe.image_tokenizer, pixels))
    return {"title": title, "kept": kept, "asked": len(asked), "named": mean(right), "chance": lucky}


def table(found: dict[str, Any]) -> str:
    """Write a line a set."""
    lines = [
        f"{found['machine']['Processor']}; {found['date']}, commit {found['commit']}.",
        "",
        "| set | emoji | PSNR, dB | SSIM | things asked for | named | chance |",
        f"| --- |{' ---: |' * 6}",
    ]
    for row in found["sets"]:
        kept = row["kept"]
        lines.append(
            f"| {row['title']} | {kept['count']:,} | {kept['psnr']:.1f} | {kept['ssim']:.3f} | {row['asked']} "
            f"| {row['named']:.0%} | {row['chance']:.0%} |"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Score what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="*", help="what `npm pack @iconify-json/...` has written")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "styles.json")
    parser.add_argument("--readme", type=Path, nargs="?", const=ROOT / "docs" / "model.md", help="page to write into")
    given = parser.parse_args(words)
    pipe = anymodal.from_pretrained(given.model, dtype="float32")
    known = own()
    sets = {OWN: known, **dict(drawn_by_others(path, list(known)) for path in given.packages)}
    found = {**provenance(), "sets": [score(pipe, title, pictures) for title, pictures in sets.items()]}
    publish(found, table(found), given.out, given.readme, "styles")


if __name__ == "__main__":
    main()
