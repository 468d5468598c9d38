"""Build the embedded emoji set from the two npm packages that it comes from.

    npm pack emoji-datasource-google@16.0.0 emojibase-data@17.0.0    # then unpack both
    anymodal train emoji --images emoji-datasource-google-16.0.0/package --texts emojibase-data-17.0.0/package

Writes `emoji.zip` (one WebP a concept, stored) and `emoji.json` (what is in them) into the folder of the asset, and
reads the order of the scene concepts from `scene_names.txt` there. The same packages and libwebp give the same bytes.
"""

import hashlib
import io
import json
import re
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

import anymodal.data

QUALITY = 90
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can say

# A plain everyday name for what emojibase calls more stiffly; its own label stays as an alias. Faces of animals take
# the animal's name because they are what stays recognisable when it is drawn small.
NAMES = {
    "dog face": "dog", "cat face": "cat", "rabbit face": "rabbit", "cow face": "cow", "pig face": "pig",
    "tiger face": "tiger", "monkey face": "monkey", "mouse face": "mouse", "horse face": "horse",
    "dog": "standing dog", "cat": "standing cat", "rabbit": "sitting rabbit", "cow": "standing cow",
    "pig": "standing pig", "tiger": "standing tiger", "monkey": "sitting monkey", "mouse": "standing mouse",
    "horse": "running horse", "automobile": "car", "lady beetle": "ladybug", "honeybee": "bee", "bug": "caterpillar",
    "deciduous tree": "tree", "evergreen tree": "pine tree", "closed book": "red book", "wrapped gift": "gift",
    "jack-o-lantern": "pumpkin", "ringed planet": "planet", "high voltage": "lightning bolt", "bullseye": "target",
    "red paper lantern": "red lantern", "package": "cardboard box", "billed cap": "cap", "woman's boot": "boot",
    "gem stone": "diamond", "locked": "padlock", "globe showing americas": "globe", "hourglass done": "hourglass",
    "vertical traffic light": "traffic light", "sports medal": "medal", "clown face": "clown", "ear of corn": "corn",
    "unlocked": "open padlock", "foggy": "foggy bridge", "information": "information sign",
    "poultry leg": "chicken leg", "baguette bread": "baguette", "hot beverage": "cup of coffee",
}  # fmt: skip
# Which label names a picture that several emoji share (the others become aliases).
SHARED = (
    "flag of australia", "flag of norway", "flag of france", "flag of saudi arabia", "flag of spain",
    "flag of british indian ocean territory", "flag of the united states", "family", "family of adult and child",
    "family of adult, child and child", "family of adult, adult, child and child",
)  # fmt: skip
WITH_THE = ("united", "netherlands", "bahamas", "philippines", "maldives", "gambia", "comoros", "seychelles",
            "czech", "central", "dominican republic", "british", "cayman", "cook", "falkland", "faroe", "marshall",
            "solomon", "northern", "u.s.", "isle", "canary", "cocos", "turks", "pitcairn", "french southern",
            "åland", "european")  # fmt: skip


def clean(label: str) -> str:
    """Return an emojibase label as a lower-case name without colons, ampersands or curly quotes."""
    name = label.lower().replace("’", "'").replace("“", "").replace("”", "").replace("&", "and")
    kind, colon, rest = name.partition(": ")
    if not colon:
        return name
    parts = rest.split(", ")
    listed = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    if kind == "flag":
        return f"flag of the {rest}" if rest.startswith(WITH_THE) else f"flag of {rest}"
    if kind in ("family", "kiss", "couple with heart"):
        return f"{kind.replace('couple with heart', 'couple in love')} of {listed}"
    if rest == "bald":
        return f"bald {kind}"
    if rest == "facing right":
        return f"{kind} facing right"
    return f"{kind} with {rest}" if rest.endswith(("hair", "beard")) else f"{kind} {rest}"


def read_texts(texts: Path) -> dict[str, dict[str, Any]]:
    """Return name, keywords, group and subgroup by code point sequence (without the variation selector)."""
    messages = json.loads((texts / "en" / "messages.json").read_text("utf-8"))
    groups = {entry["order"]: entry["message"].replace("&", "and") for entry in messages["groups"]}
    # two subgroups claim one order; the later one is what the data means (seafood stands among marine life)
    subgroups = {entry["order"]: entry["key"] for entry in messages["subgroups"]}
    found = {}
    for entry in json.loads((texts / "en" / "data.json").read_text("utf-8")):
        if "subgroup" in entry:
            found[entry["hexcode"].replace("-FE0F", "")] = {
                "name": clean(entry["label"]),
                "keywords": [tag.lower().replace("’", "'") for tag in entry.get("tags", ())],
                "group": groups[entry["group"]],
                "subgroup": subgroups[entry["subgroup"]],
                "order": entry["order"],
            }
    return found


def read_picture(path: Path) -> Image.Image:
    """Read a picture as RGBA in which invisible pixels are black, so that equal pictures have equal bytes."""
    picture = Image.open(path).convert("RGBA")
    nothing = Image.new("RGBA", picture.size)
    return Image.composite(picture, nothing, picture.getchannel("A").point(lambda alpha: 255 if alpha else 0))


def merge(members: list[dict[str, Any]]) -> dict[str, Any]:
    """Turn the emoji that share one picture into one concept."""
    members = sorted(members, key=lambda member: (member["name"] not in SHARED, member["order"]))
    first = members[0]
    simple = NAMES.get(first["name"], first["name"])
    names = [simple, *(member["name"] for member in members)]
    keywords = dict.fromkeys(word for member in members for word in member["keywords"])
    return {
        "code": first["code"],
        "name": simple,
        # a name that another concept took over is no alias
        "aliases": [name for name in dict.fromkeys(names[1:]) if name != simple and name not in NAMES.values()],
        "keywords": [word for word in keywords if word not in names],
        "group": first["group"],
        "subgroup": first["subgroup"],
        "order": min(member["order"] for member in members),
    }


def write(out: Path, concepts: list[dict[str, Any]], pictures: dict[str, Image.Image]) -> None:
    """Write the archive of pictures and the texts beside it."""
    with zipfile.ZipFile(out / "emoji.zip", "w", zipfile.ZIP_STORED) as archive:
        for concept in concepts:
            data = io.BytesIO()
            pictures[concept["code"]].save(data, "WEBP", quality=QUALITY)
            archive.writestr(zipfile.ZipInfo(f"{concept['code']}.webp", EPOCH), data.getvalue())
    lines = ",\n".join(json.dumps(concept, ensure_ascii=False, sort_keys=True) for concept in concepts)
    (out / "emoji.json").write_text(f"[\n{lines}\n]\n", "utf-8")


def main(*, images: Path, texts: Path, out: Path | None = None) -> None:
    """Read both packages, merge what looks the same, write the asset.

    Args:
        images: the unpacked emoji-datasource-google.
        texts: the unpacked emojibase-data.
        out: the folder to write to, which holds scene_names.txt; default: the asset inside the library.

    Raises:
        ValueError: an emoji has no text, two concepts have one name, or a scene name is no concept.
    """
    out = Path(anymodal.data.__file__).parent / "assets" if out is None else out
    described = read_texts(texts)
    pictures: dict[str, Image.Image] = {}
    same = defaultdict(list)
    for entry in json.loads((images / "emoji.json").read_text("utf-8")):
        code = entry["unified"].lower()
        key = entry["unified"].replace("-FE0F", "")
        if key not in described:
            raise ValueError(f"every picture needs a text, {code} has none: take the two versions named above")
        pictures[code] = read_picture(images / "img" / "google" / "64" / entry["image"])
        digest = hashlib.sha256(pictures[code].tobytes()).hexdigest()
        same[digest].append({"code": code, **described[key]})
    concepts = sorted((merge(members) for members in same.values()), key=lambda concept: concept["order"])
    names = [concept["name"] for concept in concepts]
    scenes = (out / "scene_names.txt").read_text("utf-8").splitlines()
    for name in sorted({*scenes, *names}):
        if names.count(name) != 1:
            raise ValueError(f"a name must stand for one concept, {name!r} stands for {names.count(name)}")
    for concept in concepts:
        del concept["order"]
        if re.search(r"[:;&A-Z]", concept["name"].replace("keycap", "")):
            raise ValueError(f"a name must be clean, {concept['name']!r} is not: extend clean()")
    write(out, concepts, pictures)
    print(f"{len(concepts)} concepts of {len(pictures)} emoji, {(out / 'emoji.zip').stat().st_size / 1e6:.2f} MB")
