import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anymodal.__main__ import main
from anymodal.pipeline import from_pretrained

ROOT = Path(__file__).parents[2]

SHAPE = [
    *("--model.transformer.dim", "32", "--model.transformer.depth", "1", "--model.transformer.num_heads", "2"),
    *("--model.transformer.num_kv_heads", "2", "--model.transformer.head_dim", "16", "--model.heads", "decoupled"),
    *("--model.transformer.hidden_dim", "64", "--model.understanding.image_size", "16"),
    *("--model.understanding.dim", "16", "--model.understanding.num_heads", "2", "--model.understanding.depth", "1"),
    *("--run.batch_size", "4", "--run.precision", "float32", "--run.sample_every", "2", "--data.num_workers", "0"),
    *("--stage.seq_len", "256", "--generation.max_new_tokens", "5"),
]


def test_trains_shows_and_resumes(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["train", "pretrain", "--data.train", toy.coded, "--out", str(out), *SHAPE]
    words += ["--text_tokenizer", str(toy.text_tokenizer), "--image_tokenizer", str(toy.image_tokenizer)]
    words += ["--prompts", '["a dog"]']
    assert main([*words, "--run.steps", "2"]) == 0
    assert capsys.readouterr().out == f"{out / 'model'}: 2 steps\n"
    assert (out / "samples" / "step-00000002.png").is_file()
    pipe = from_pretrained(out / "model")
    assert pipe.generation.max_new_tokens == 5
    assert pipe.generate_image("a dog")[0].size == (16, 16)
    assert main([*words, "--run.steps", "3"]) == 0
    assert sorted(path.name for path in (out / "checkpoints").glob("*.ckpt")) == [
        "step-00000002.ckpt",
        "step-00000003.ckpt",
    ]


def test_shards_without_codes_end_with_code_2(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "pretrain", "--data.train", toy.plain, "--out", str(tmp_path / "run"), *SHAPE]
    words += ["--text_tokenizer", str(toy.text_tokenizer), "--image_tokenizer", str(toy.image_tokenizer)]
    assert main(words) == 2
    assert "carries no codes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("launcher", ["torchrun", "devices"])
def test_two_processes_write_one_model(toy: Any, tmp_path: Path, launcher: str) -> None:
    words = ["train", "pretrain", "--data.train", toy.coded, "--out", str(tmp_path / "run"), *SHAPE]
    words += ["--text_tokenizer", str(toy.text_tokenizer), "--image_tokenizer", str(toy.image_tokenizer)]
    words += ["--prompts", '["a dog"]', "--run.steps", "2", "--run.strategy", "fsdp"]
    start = [sys.executable, "-m", "anymodal"]
    if launcher == "torchrun":
        start[1:1] = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    else:
        words += ["--run.devices", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, *words], env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run' / 'model'}: 2 steps\n"
    assert done.stderr.count("parameters, of which") == 1, done.stderr
    assert from_pretrained(tmp_path / "run" / "model").generate_image("a dog")[0].size == (16, 16)
    assert (tmp_path / "run" / "samples" / "step-00000002.png").is_file()


def test_a_dry_run_trains_nothing(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["train", "pretrain", "--data.train", toy.coded, "--out", str(out), *SHAPE, "--dry_run"]
    words += ["--text_tokenizer", str(toy.text_tokenizer), "--image_tokenizer", str(toy.image_tokenizer)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "all parts" in said
    assert "tokens a step" in said
    assert [path.name for path in out.iterdir()] == ["first_batch.png"]
