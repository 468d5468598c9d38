import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from anymodal.data.shards import Sample, write_shards
from anymodal.tokens.text import TextTokenizer

Cli = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    details = {
        "captions": ["zebra zebra"],
        "questions": [{"question": "quokka quokka?", "answer": " walrus walrus", "type": "what"}],
        "turns": [{"role": "user", "parts": [{"text": "yak yak"}]}],
    }
    members = {"txt": b"badger badger", "json": json.dumps(details).encode()}
    write_shards([Sample(f"{i:03d}", members) for i in range(3)], str(folder / "train-%06d.tar"))
    return str(folder / "train-{000000..000000}.tar")


def test_learns_from_everything_that_is_said_in_shards(cli: Cli, shards: str, tmp_path: Path) -> None:
    out = tmp_path / "made" / "tokenizer.json"
    result = cli("tokenizers", "text", "--shards", shards, "--out", str(out), "--vocab_size", "320")
    assert result.returncode == 0, result.stderr
    tokenizer = TextTokenizer.load(out)
    assert f"{tokenizer.vocab_size} ids learned from 15 texts" in result.stdout
    assert tokenizer.fingerprint in result.stdout
    for word in (" zebra", " quokka", " walrus", " yak", " badger"):
        assert len(tokenizer.encode(word)) < len(word) / 2
    assert len(tokenizer.encode(" hyena")) == len(" hyena")


def test_learns_from_text_files(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("an apple\nan apple\n")
    out = tmp_path / "tokenizer.json"
    result = cli("tokenizers", "text", "--texts", '["*.txt"]', "--out", str(out), "--vocab_size", "300", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(TextTokenizer.load(out).encode("an apple")) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "got neither"),
        (["--texts", '["none-*.txt"]'], "'none-*.txt' must name at least one text file"),
        (["--texts", '["latin.txt"]'], "latin.txt is not"),
        (["--texts", '["empty.txt"]'], "empty.txt holds none"),
        (["--shards", "gone-{0..3}.tar"], "gone-"),
        (["--texts", '["good.txt"]', "--vocab_size", "9"], "at least 267"),
    ],
)
def test_a_mistake_ends_with_code_2_and_writes_nothing(
    cli: Cli, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "good.txt").write_text("good")
    result = cli("tokenizers", "text", "--out", "tokenizer.json", *options, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "tokenizer.json").exists()
