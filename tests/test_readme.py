"""What README tells a user to type is typed here: Python, sampling, and the five commands on pictures of one's own."""

import json
import re
import shlex
from pathlib import Path

import pytest

from anymodal.__main__ import main
from anymodal.commands import FOLDERS, list_programs
from anymodal.data.emoji import picture, scene_names
from anymodal.options import parse

TOY = {
    "shards": [],
    "text": ["--vocab_size", "300"],
    "image": ["--tokenizer.channels", "[32]", "--tokenizer.patch", "8", "--tokenizer.blocks", "1",
              "--run.steps", "2", "--run.batch_size", "4", "--run.precision", "float32"],
    "codes": [],
    "pretrain": ["--run.steps", "2", "--run.batch_size", "4", "--model.transformer.dim", "32",
                 "--model.transformer.depth", "1", "--run.precision", "float32"],
}  # fmt: skip


def blocks(root: Path, language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (root / page).read_text(encoding="utf-8"), re.DOTALL)


def commands(root: Path, page: str = "README.md") -> list[list[str]]:
    lines = "\n".join(blocks(root, "console", page)).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("anymodal ")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_runs(root: Path, here: Path) -> None:
    (code,) = blocks(root, "python")
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    assert (here / "star.png").is_file()


def test_sampling_commands_run(root: Path, here: Path) -> None:
    sampled = [words for words in commands(root) if words[0] == "sample"]
    assert {words[1] for words in sampled} >= {"image", "text", "document"}
    for words in sampled:
        if words[1] != "score":
            assert main(words) == 0, words
    assert (here / "pictures" / "sheet.png").is_file()
    assert (here / "star" / "000.png").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_five_commands_train_on_pictures_of_ones_own(root: Path, here: Path, page: str) -> None:
    (here / "my-pictures").mkdir()
    for name in scene_names()[:12]:
        picture(name).save(here / "my-pictures" / f"{name}.png")
        (here / "my-pictures" / f"{name}.txt").write_text(f"a {name}", encoding="utf-8")
    trained = [words for words in commands(root, page) if words[0] != "sample" and "my.yaml" not in words]
    tried = [words for words in trained if "--dry_run" in words]
    assert [words[1] for words in trained if words not in tried] == ["shards", "text", "image", "codes", "pretrain"]
    assert bool(tried) == (page != "README.md")
    for words in trained:
        assert main([*words, *TOY[words[1]]]) == 0, words
    assert main(["sample", "image", "a dog", "--model", "runs/mine/model", "--out", "drawn"]) == 0
    assert (here / "drawn" / "000.png").is_file()


def test_launching_many_processes_is_understood(root: Path) -> None:
    lines = "\n".join(blocks(root, "console", "docs/training.md")).replace("\\\n", " ").splitlines()
    launched = [shlex.split(line.partition("anymodal ")[2], comments=True) for line in lines if "my.yaml" in line]
    assert len(launched) == 4
    for folder, name, *options in launched:
        config = str(root / "configs" / "demo" / "pretrain.yaml")
        words = [config if word == "my.yaml" else word for word in options]
        required = ["--out", "x", "--data.train", "x", "--text_tokenizer", "x", "--image_tokenizer", "x"]
        parse(list_programs(root, folder)[name], [*words, *required], root)


def test_python_of_the_page_about_sampling_runs(root: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for code in blocks(root, "python", "docs/sampling.md"):
        exec(compile(code, "docs/sampling.md", "exec"), names)  # noqa: S102
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("PictureRows") > 1
    assert len(names["pictures"]) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("page", ["docs/published.md", "docs/scoring.md", "anymodal/models/emoji/README.md"])
def test_commands_of_other_pages_are_understood(root: Path, page: str) -> None:
    found = commands(root, page)
    assert len(found) > 3
    for folder, name, *options in found:
        parse(list_programs(root, folder)[name], options, root)


def test_every_program_of_the_tree_is_named(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    for folder in FOLDERS:
        for path in (root / folder).glob("*.py"):
            assert path.name in text, path


@pytest.mark.parametrize("page", ["README.md", "docs/sampling.md"])
def test_what_is_said_of_speculation_was_measured(root: Path, page: str) -> None:
    rows = json.loads((root / "benchmarks" / "speculation.json").read_text(encoding="utf-8"))["rows"]
    guessed = [row for row in rows if row["engine"].startswith("jacobi")]
    (plain,) = {row["passes"] for row in rows if row["engine"] == "none"}
    assert {row["equal"] for row in guessed} == {1}
    passes, speeds = ([row[key] for row in guessed] for key in ("passes", "speed"))
    told = " ".join((root / page).read_text(encoding="utf-8").split())
    for figure in (
        f"{min(passes):.1f} to {max(passes):.1f} ",
        f"{plain}",
        f"{min(speeds):.2f} to {max(speeds):.2f} times",
    ):
        assert figure in told, figure
