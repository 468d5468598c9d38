from pathlib import Path
from typing import Any

import pytest

from anymodal.__main__ import main
from anymodal.data.index import ShardIndex
from anymodal.data.samples import Reading, codes_of
from anymodal.tokens.image import ImageTokenizer


def test_writes_codes_with_their_fingerprint(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "tokenizers",
        "codes",
        "--shards",
        toy.plain,
        "--image_tokenizer",
        str(toy.image_tokenizer),
        "--size",
        "16",
    ]
    assert main([*words, "--out", str(tmp_path / "coded")]) == 0
    fingerprint = ImageTokenizer.from_pretrained(toy.image_tokenizer).fingerprint
    assert capsys.readouterr().out.startswith(
        f"{tmp_path / 'coded'}: 24 samples in 2 shards with codes of {fingerprint}"
    )
    made, expected = ShardIndex.open(str(tmp_path / "coded")), ShardIndex.open(toy.coded)
    reading = Reading(fingerprint=fingerprint, look_size=None)
    for i in (0, 23):
        assert made.read(i).members.keys() == expected.read(i).members.keys()
        assert codes_of(made.read(i), reading).equal(codes_of(expected.read(i), reading))


def test_mistakes_end_with_code_2_and_write_nothing(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tokenizers", "codes", "--shards", toy.plain, "--out", str(tmp_path / "coded")]
    assert main([*words, "--image_tokenizer", str(tmp_path)]) == 2
    assert "holds no image tokenizer" in capsys.readouterr().err
    assert main([*words, "--image_tokenizer", str(toy.image_tokenizer), "--size", "18"]) == 2
    assert "multiples of 4, got 18 x 18" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.tar"))


@pytest.mark.parametrize(("rank", "world"), [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")])
def test_processes_know_their_share(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rank: str, world: str
) -> None:
    words = ["tokenizers", "codes", "--shards", toy.plain, "--image_tokenizer", str(toy.image_tokenizer)]
    words += ["--size", "16", "--out", str(tmp_path), "--form", "records", "--augmentations", "2"]
    monkeypatch.setenv(rank, "1")
    monkeypatch.setenv(world, "2")
    assert main(words) == 0
    assert "12 samples in 1 records of codes" in capsys.readouterr().out
    assert [path.name[:7] for path in tmp_path.glob("*.safetensors")] == ["000001."]
    assert main([*words, "--rank", "0", "--world", "1"]) == 0
    assert "24 samples in 2 records of codes" in (said := capsys.readouterr().out)
    assert "1 of them stood there already" in said
    assert main([*words, "--rank", "7", "--world", "8"]) == 0
    assert "no shard is left for process 7 of 8" in capsys.readouterr().out
    assert main([*words, "--rank", "0"]) == 2
    assert "rank must be in [0, world), and both be given or none" in capsys.readouterr().err
