import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

DOG, CAT, NORWAY, BOUVET = "1F436", "1F431", "1F1F3-1F1F4", "1F1E7-1F1FB"


def write_packages(folder: Path) -> None:
    pictures, texts = folder / "pictures" / "img" / "google" / "64", folder / "texts" / "en"
    pictures.mkdir(parents=True)
    texts.mkdir(parents=True)
    colours = {DOG: (90, 60, 30, 255), CAT: (250, 200, 0, 255), NORWAY: (255, 0, 0, 255), BOUVET: (255, 0, 0, 255)}
    for code, colour in colours.items():
        image = Image.new("RGBA", (64, 64), (len(code), len(code), len(colours), 0))  # hidden colours differ
        image.paste(colour, (8, 8, 56, 56))
        image.save(pictures / f"{code}.png")
    entries = [{"unified": code, "image": f"{code}.png"} for code in (BOUVET, DOG, NORWAY, CAT)]
    (folder / "pictures" / "emoji.json").write_text(json.dumps(entries))
    labels = {DOG: "dog face", CAT: "cat face", NORWAY: "flag: Norway", BOUVET: "flag: Bouvet Island"}
    data = [
        {"hexcode": code, "label": label, "tags": ["pet"], "group": 0, "subgroup": 0, "order": order}
        for order, (code, label) in enumerate(labels.items())
    ]
    (texts / "data.json").write_text(json.dumps(data))
    messages = {key: [{"order": 0, "key": "all", "message": "all & sundry"}] for key in ("groups", "subgroups")}
    (texts / "messages.json").write_text(json.dumps(messages))
    (folder / "scene_names.txt").write_text("dog\n")


def test_emoji_builds_the_asset(cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    write_packages(tmp_path)
    words = ["train", "emoji", "--images", "pictures", "--texts", "texts", "--out", "."]
    run = cli(*words)
    assert run.returncode == 0, run.stderr
    assert "3 concepts of 4 emoji" in run.stdout
    concepts = json.loads((tmp_path / "emoji.json").read_text("utf-8"))
    assert [concept["name"] for concept in concepts] == ["dog", "cat", "flag of norway"]
    assert concepts[0]["aliases"] == ["dog face"]
    assert concepts[2]["aliases"] == ["flag of bouvet island"]
    assert concepts[0]["group"] == "all and sundry"
    first = (tmp_path / "emoji.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "emoji.zip") as archive:
        assert archive.namelist() == ["1f436.webp", "1f431.webp", "1f1f3-1f1f4.webp"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert cli(*words).returncode == 0
    assert (tmp_path / "emoji.zip").read_bytes() == first


def test_emoji_names_a_scene_that_is_no_concept(
    cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    write_packages(tmp_path)
    (tmp_path / "scene_names.txt").write_text("dog\nunheard of\n")
    run = cli("train", "emoji", "--images", "pictures", "--texts", "texts", "--out", ".")
    assert run.returncode == 2
    assert "unheard of" in run.stderr
