"""What is learned and scored: designs, image tokenizers, settings, styles, the card."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

import anymodal
from anymodal.__main__ import main
from anymodal.model.folder import fingerprint_of
from anymodal.pipeline import find_folder


@pytest.fixture
def quick(programs: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Run programs in this process, on few names; return the words that make a benchmark small."""

    def program(work: Path, *words: str) -> float:
        monkeypatch.chdir(work)
        assert main(list(words)) == 0, words
        return 60.0

    for name, value in {"NAMES": 4, "HELD_OUT_SCENES": 4, "VOCAB_SIZE": 320, "program": program}.items():
        monkeypatch.setattr(programs["trials"], name, value)
    monkeypatch.setattr(programs["image_tokenizers"], "program", program)
    page = tmp_path / "model.md"
    page.write_text(
        "".join(
            f"<!-- {name}:begin --><!-- {name}:end -->"
            for name in ("designs", "image_tokenizers", "tokenizer_losses", "sweep", "card")
        )
    )
    yield ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "found.json"), "--readme", str(page)]
    monkeypatch.chdir(tmp_path)


def test_designs_learn_the_same_and_are_not_trained_twice(
    programs: dict[str, ModuleType], quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    designs = list(programs["designs"].DESIGNS)[::3]
    words = [*quick, "--steps", "2", "--seeds", "1", "--scenes", "8", "--designs", *designs]
    programs["designs"].main(words)
    trials = json.loads((tmp_path / "found.json").read_text())["trials"]
    assert [trial["design"] for trial in trials] == designs
    for trial in trials:
        assert 0 <= trial["scenes"] <= trial["scenes_ceiling"] <= 1
        assert set(trial["answers"]) == set(trial["chance"])
    assert trials[0]["parameters"] != trials[1]["parameters"]
    page = (tmp_path / "model.md").read_text()
    assert all(
        f"| {design} | {trial['parameters'] / 1e6:.2f} M | 1.0 |" in page
        for design, trial in zip(designs, trials, strict=True)
    )
    monkeypatch.delattr(programs["trials"], "program")
    programs["designs"].main(words)
    assert json.loads((tmp_path / "found.json").read_text())["trials"] == trials
    with pytest.raises(ValueError, match="begun for these settings, but steps 2 is not 3; take another folder"):
        programs["designs"].main([*words, "--steps", "3"])


def test_image_tokenizers_are_scored_and_drawn_with(
    programs: dict[str, ModuleType], quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PICTURES": 8, "SCORED_SCENES": 4}.items():
        monkeypatch.setattr(programs["image_tokenizers"], name, value)
    monkeypatch.setattr(programs["image_tokenizers"], "SCENES", 8)
    programs["image_tokenizers"].main(
        [*quick, "--steps", "2", "--drawing_steps", "2", "--trials", "LFQ, 64 codes", "FSQ, 144 codes"]
    )
    trials = json.loads((tmp_path / "found.json").read_text())["trials"]
    assert [trial["size"] for trial in trials] == [64, 72]
    for trial in trials:
        for kind in ("kept_emoji", "kept_scenes"):
            assert trial[kind]["psnr"] > 5
            assert 1 <= trial[kind]["perplexity"] <= 4096
        assert 0 <= trial["scenes"] <= 1
    assert (tmp_path / "model.md").read_text().count("\n| ") == 4


def test_losses_of_a_tokenizer_are_compared(
    programs: dict[str, ModuleType], quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PICTURES": 8, "SCORED_SCENES": 4}.items():
        monkeypatch.setattr(programs["image_tokenizers"], name, value)
    run, said = programs["image_tokenizers"].program, list[str]()

    def program(work: Path, *words: str) -> Any:
        said.append(" ".join(words))
        return run(work, *words)

    monkeypatch.setattr(programs["image_tokenizers"], "program", program)
    plain, *_, held = programs["tokenizer_losses"].TRIALS
    programs["tokenizer_losses"].main([*quick, "--steps", "2", "--trials", plain, held])
    first, last = json.loads((tmp_path / "found.json").read_text())["trials"]
    assert (first["losses"], set(last["losses"])) == (
        {}, {"perceptual_weight", "adversarial_weight", "lecam_weight"},
    )  # fmt: skip
    assert first["kept_emoji"]["psnr"] != last["kept_emoji"]["psnr"]
    without, beside = [line for line in said if line.startswith("tokenizers image")]
    assert "adversarial" not in without
    assert "--losses.lecam_weight 0.1 --losses.adversarial_start 1 " in beside
    assert f"| {held} | 1.0 | {last['kept_emoji']['psnr']:.2f} / " in (tmp_path / "model.md").read_text()


def test_a_sweep_finds_the_best_setting(
    programs: dict[str, ModuleType], quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = {"GUIDANCE": (1.0, 2.0), "TEMPERATURE": (0.7,), "TOP_K": (0, 8), "BEST_OF": (1, 2), "WEIGHTS": ("int8",)}
    for name, value in swept.items():
        monkeypatch.setattr(programs["sweep"], name, value)
    programs["sweep"].main([*quick, "--count", "4", "--plot", str(tmp_path / "sweep.svg")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["fingerprint"] == fingerprint_of(find_folder("emoji"))
    assert {"commit", "machine", "date", "seed", "count"} <= set(found)
    assert len(found["rows"]) == 4
    best = max(row["share"] for row in found["rows"])
    assert f"**{100 * best:.1f}**" in (tmp_path / "model.md").read_text()
    assert (tmp_path / "sweep.svg").read_text().count("<polyline") == 2
    setting = {"guidance_scale": 2.0, "temperature": 0.7, "top_k": 8, "top_p": 1.0, "best_of": 1}
    again = programs["sweep"].shares(anymodal.from_pretrained("emoji", dtype="float32"), setting, 4, 100)
    assert [row["share"] for row in found["rows"] if {**row, **setting} == row] == [again["share"]]
    assert [row["best_of"] for row in found["best_of"]] == [1, 2]
    assert f"| 2 | {100 * found['best_of'][1]['share']:.1f} |" in (tmp_path / "model.md").read_text()
    assert f"| int8 | {100 * found['weights'][0]['share']:.1f} |" in (tmp_path / "model.md").read_text()


def test_a_work_folder_is_of_one_model_and_count(programs: dict[str, ModuleType], tmp_path: Path) -> None:
    claim, begun = programs["provenance"].claim, {"fingerprint": "0a1b", "count": 4}
    claim(tmp_path / "work", begun)
    claim(tmp_path / "work", begun)
    for changed in ({"fingerprint": "2c3d"}, {"count": 5}, {"concepts": 6}):
        with pytest.raises(ValueError, match=f"{next(iter(changed))} .* is not .*; take another folder"):
            claim(tmp_path / "work", begun | changed)


def test_the_card_shows_what_was_scored(programs: dict[str, ModuleType], root: Path, tmp_path: Path) -> None:
    card, readme = tmp_path / "card.md", tmp_path / "README.md"
    card.write_text("<!-- scores:begin --><!-- scores:end -->")
    readme.write_text("<!-- headlines:begin --><!-- headlines:end -->")
    programs["card"].main(["--card", str(card), "--readme", str(readme)])
    rows = json.loads((root / "benchmarks" / "emoji.json").read_text())["scores"]["scenes, held-out combinations"]
    share = next(row["value"] for row in rows if row["name"].startswith("every kind"))
    for page, real in ((card, programs["card"].CARD), (readme, root / "README.md")):
        assert f"| {100 * share:.1f} % |" in page.read_text()
        name = "scores" if page is card else "headlines"
        written = page.read_text().split(f"<!-- {name}:begin -->")[1].split(f"<!-- {name}:end -->")[0]
        assert written in real.read_text(), f"`python benchmarks/card.py` must have written {real}"


def test_sets_of_other_artists_are_shown(
    programs: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = list[Path]()
    for number, names in enumerate(({"1f339": "rosa", "1f431": "cat"}, {})):
        drawn = {"rosa": {"body": "<path/>"}, "cat-face": {"body": "<g/>", "width": 9}, "rose": {"body": "<text/>"}}
        icons = {"icons": drawn, "aliases": {"cat": {"parent": "cat-face"}}, "height": 30}
        about = {"name": f"Set {number}", "license": {"spdx": "MIT"}}
        paths.append(tmp_path / f"{number}.tgz")
        with tarfile.open(paths[-1], "w:gz") as archive:
            for name, content in {"icons": icons, "chars": names, "info": about}.items():
                data = json.dumps(content).encode()
                member = tarfile.TarInfo(f"package/{name}.json")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    icons_seen = list[dict[str, Any]]()

    def rendered(icon: dict[str, Any]) -> Image.Image:
        icons_seen.append(icon)
        return Image.new("RGBA", (64, 64), "red")

    monkeypatch.setattr(programs["styles"], "rendered", rendered)
    known = {concept: image for concept, image in programs["styles"].own().items() if concept.name in ("rose", "cat")}
    assert {image.getpixel((0, 0)) for image in known.values()} == {(255, 255, 255)}
    monkeypatch.setattr(programs["styles"], "own", lambda: known)
    page = tmp_path / "model.md"
    page.write_text("<!-- styles:begin --><!-- styles:end -->")
    programs["styles"].main([*map(str, paths), "--out", str(tmp_path / "found.json"), "--readme", str(page)])
    bodies = [icon["body"] for icon in icons_seen]
    assert sorted(bodies[:2]) == ["<g/>", "<path/>"], "by code, and aliases lead on"
    assert sorted(bodies[2:]) == ["<g/>", "<text/>"], "where a set has no codes, by name"
    assert icons_seen[bodies.index("<g/>")] == {"body": "<g/>", "left": 0, "top": 0, "width": 9, "height": 30}
    first, *others = json.loads((tmp_path / "found.json").read_text())["sets"]
    assert (first["asked"], first["named"], first["chance"]) == (2, 1.0, 0.5)
    assert [(each["title"], each["asked"]) for each in others] == [("Set 0 (MIT)", 2), ("Set 1 (MIT)", 2)]
    assert all(each["named"] == each["chance"] for each in others), "who sees the same in both answers the same"
    assert f"| Set 1 (MIT) | 2 | {others[1]['kept']['psnr']:.1f} | " in page.read_text()
    with tarfile.open(paths[0], "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"0.tgz must hold package/icons.json, .*; make it with `npm pack"):
        programs["styles"].main([str(paths[0]), "--out", str(tmp_path / "found.json")])
