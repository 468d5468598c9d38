import subprocess
from collections.abc import Callable
from pathlib import Path

from PIL import Image

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_whole_road_at_toy_size(cli: Cli, tmp_path: Path) -> None:
    words = ["train", "demo", "--out", "demo", "--concepts", "8", "--minutes", "0.02"]
    done = cli(*words)
    assert done.returncode == 0, done.stderr
    stages = (
        "embedded model",
        "shards",
        "text tokenizer",
        "image tokenizer",
        "codes",
        "unified model",
        "pictures",
        "scores",
    )
    lines = done.stderr.splitlines()
    assert [name for name in stages if any(line.startswith(f"{name:<16}") for line in lines)] == list(stages)
    assert "nearest concept by ImageNet features" in done.stdout
    assert "yes-no questions" in done.stdout
    assert done.stdout.splitlines()[-1] == "demo/report.html"
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 8 * 3 + 8
    assert page.count("memorised</span>") == page.count("never seen</span>") == 4
    assert page.count("<svg") == 2
    with Image.open(tmp_path / "demo" / "embedded.png") as drawn:
        assert drawn.width > 4 * 3 * 64
    assert (tmp_path / "demo" / "training" / "model" / "config.json").is_file()


def test_what_is_not_the_demos_stays(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data").touch()
    done = cli("train", "demo", "--out", "mine")
    assert done.returncode == 2
    assert "mine must be new, empty or an earlier demo's, but it holds data" in done.stderr
    (tmp_path / "mine" / ".anymodal-demo").touch()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert "it holds thesis.txt" in cli("train", "demo", "--out", "mine").stderr
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"data", ".anymodal-demo", "thesis.txt"}


def test_mistakes_end_with_code_2(cli: Cli, tmp_path: Path) -> None:
    for words, message in (
        (["--concepts", "1000"], "concepts must be from 4"),
        (["--minutes", "0"], "must be positive"),
    ):
        done = cli("train", "demo", "--out", "demo", *words)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        assert message in done.stderr
    assert not (tmp_path / "demo").exists()
