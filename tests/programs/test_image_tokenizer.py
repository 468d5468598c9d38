from pathlib import Path
from typing import Any

import pytest
import torch

from anymodal.__main__ import main
from anymodal.tokens.image import ImageTokenizer

WORDS = [
    *("--tokenizer.channels", "[8]", "--tokenizer.norm_groups", "4", "--tokenizer.blocks", "1"),
    *("--tokenizer.latent_channels", "8", "--tokenizer.quantizer.codebook_size", "16", "--losses.size", "16"),
    *("--run.steps", "2", "--run.batch_size", "4", "--run.sample_every", "2", "--run.precision", "float32"),
    *("--run.validate_every", "2", "--run.validation_steps", "1", "--data.num_workers", "0"),
]


def test_trains_shows_and_resumes(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["tokenizers", "image", "--data.train", toy.plain, "--data.held_out", toy.plain, "--out", str(out), *WORDS]
    assert main(words) == 0
    fingerprint = ImageTokenizer.from_pretrained(out / "image_tokenizer").fingerprint
    assert capsys.readouterr().out == f"{out / 'image_tokenizer'}: fingerprint {fingerprint}\n"
    assert (out / "samples" / "step-00000002.png").is_file()
    assert main([*words, "--run.steps", "4"]) == 0
    assert sorted(path.name for path in (out / "samples").iterdir())[-1] == "step-00000004.png"


def test_a_dry_run_trains_nothing(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["tokenizers", "image", "--data.train", toy.plain, "--out", str(out), *WORDS, "--dry_run"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "decoder" in said
    assert "memory: about" in said
    assert "steps: 2 of 4 pictures; an epoch is: pictures 6.0 steps" in said
    assert [path.name for path in out.iterdir()] == ["first_batch.png"]


def test_a_decoder_learns_on_while_pictures_keep_their_codes(toy: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["tokenizers", "image", "--data.train", toy.plain, "--out", str(out), "--start", str(toy.image_tokenizer)]
    run = ["--losses.size", "16", "--run.steps", "8", "--run.batch_size", "4", "--data.num_workers", "0"]
    assert main([*words, *run, "--losses.trains", "decoder", "--run.precision", "float32"]) == 0
    before, after = (ImageTokenizer.from_pretrained(path) for path in (toy.image_tokenizer, out / "image_tokenizer"))
    assert after.fingerprint == before.fingerprint
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = before.encode(pixels)
    assert torch.equal(after.encode(pixels), codes)
    assert not torch.equal(after.decode(codes), before.decode(codes))
    changed = {name for name, each in after.state_dict().items() if not torch.equal(each, before.state_dict()[name])}
    assert changed
    assert all(name.startswith(("decoder.", "quantizer.project_out.")) for name in changed)
    assert main([*words[:-2], *run, "--start", str(toy.image_tokenizer), "--out", str(tmp_path / "all")]) == 0
    again = ImageTokenizer.from_pretrained(tmp_path / "all" / "image_tokenizer")
    assert again.fingerprint != before.fingerprint


def test_mistakes_end_with_code_2(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tokenizers", "image", "--out", str(tmp_path / "run"), *WORDS]
    assert main([*words, "--data.train", str(tmp_path / "gone-{0..3}.tar")]) == 2
    assert "gone-0.tar does not" in capsys.readouterr().err
    assert main([*words, "--data.train", toy.plain, "--losses.trains", "decoder"]) == 2
    assert "name it with --start" in capsys.readouterr().err
    assert main([*words, "--data.train", toy.plain, "--start", str(toy.image_tokenizer)]) == 2
    assert "leave the options tokenizer.* out" in capsys.readouterr().err
    assert main([*words, "--data.train", toy.plain, "--losses.size", "18"]) == 2
    assert "must be" in capsys.readouterr().err
