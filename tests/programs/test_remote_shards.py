from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from anymodal.__main__ import main

TINY = [
    *("--tokenizer.channels", "[8]", "--tokenizer.norm_groups", "4", "--tokenizer.blocks", "1", "--losses.size", "16"),
    *("--tokenizer.latent_channels", "8", "--tokenizer.quantizer.codebook_size", "16", "--data.num_workers", "0"),
    *("--run.steps", "1", "--run.batch_size", "2", "--run.precision", "float32"),
]


@pytest.fixture
def address(toy: Any) -> Iterator[str]:
    """Put the toy's shards of pictures where only fsspec finds them."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    for path in toy.folder.joinpath("plain").glob("*.tar"):
        files.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    yield "memory://bucket/{000000..000001}.tar"
    files.store.clear()


def test_every_program_reads_remote_shards(
    toy: Any, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coding = ["--image_tokenizer", str(toy.image_tokenizer), "--size", "16"]
    programs = {
        "text": (["--shards", address, "--vocab_size", "300"], "300 ids learned"),
        "codes": (["--shards", address, *coding], "24 samples in 2 shards with codes"),
        "image": (["--data.train", address, *TINY], "fingerprint"),
    }
    for name, (words, told) in programs.items():
        asked = ["tokenizers", name, *words, "--out", str(tmp_path / name)]
        assert main(asked) == 2
        assert "remote shards need a folder for copies of them" in (said := capsys.readouterr().err)
        assert "name a cache_folder" in said
        assert not (tmp_path / name).exists()
        data = "data." if name == "image" else ""
        folder = tmp_path / "copies"
        assert main([*asked, f"--{data}cache_folder", str(folder), f"--{data}cache_shards", "1"]) == 0
        assert told in capsys.readouterr().out
    assert len(list(folder.rglob("*.tar"))) == 2, "who names the same shards shares the copies"
    assert len(list(folder.rglob("*.index.npz"))) == 2
