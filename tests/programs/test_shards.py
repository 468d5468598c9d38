"""train/shards.py: each kind of input once, and the mistakes that people make."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from anymodal.data.index import ShardIndex

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("apple", "dog"):
        Image.new("RGB", (8, 8), "red").save(folder / f"{name}.webp")
        (folder / f"{name}.txt").write_text(name)
    return folder


def test_emoji_and_scenes_are_packed(cli: Cli, tmp_path: Path) -> None:
    words = ["--emoji", "all", "--concepts", "5", "--scenes", "4", "--samples-per-shard", "6", "--out", "shards"]
    done = cli("train", "shards", *words)
    assert done.returncode == 0, done.stderr
    held = "9 with caption, 9 with picture, 9 with questions"
    assert done.stdout.splitlines()[:2] == ["shards   2 in shards", f"samples  9 ({held})"]
    index = ShardIndex.open(str(tmp_path / "shards"))
    assert (index.shard_sizes, index.bad) == ((6, 3), {})
    assert {"png", "txt", "json"} <= set(index.read(8).members)


def test_a_folder_is_packed_as_it_is(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    (pictures / "empty.txt").touch()
    done = cli("train", "shards", "--pictures", "pictures", "--out", "out", "--max-bad-fraction", "0.5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2:] == ["bad      1", "  1 x caption empty, first empty"]
    assert ShardIndex.open(str(tmp_path / "out")).read(1).members["webp"] == (pictures / "dog.webp").read_bytes()


def test_a_table_is_packed(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    (pictures / "rows.csv").write_text("image,caption\ndog.webp,a dog\napple.webp,an apple\n")
    done = cli("train", "shards", "--table", "pictures/rows.csv", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert ShardIndex.open(str(tmp_path / "out")).read(1).members["txt"] == b"an apple"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "from one of --emoji, --pictures, --table, got none"),
        (["--emoji", "all", "--pictures", "pictures"], "got --emoji and --pictures"),
        (["--emoji", "all", "--concepts", "0"], "concepts must be from 1"),
        (["--pictures", "missing"], "missing does not"),
        (["--pictures", "pictures"], "1 x caption empty"),
    ],
)
def test_mistakes_end_with_code_2_and_write_nothing(
    cli: Cli, tmp_path: Path, pictures: Path, words: list[str], message: str
) -> None:
    (pictures / "empty.txt").touch()
    done = cli("train", "shards", "--out", "out", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/*"))
