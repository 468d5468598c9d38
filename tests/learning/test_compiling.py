"""Runs that compile their blocks learn what those learn that do not: with averaged weights, and with spread ones."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from anymodal.__main__ import as_process, main
from anymodal.learning import passing
from anymodal.model.folder import ModelFolder

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "data.num_workers": 0, "stage.seq_len": 256, "optimizer.learning_rate": 0.003, "optimizer.warmup_steps": 2,
    "run.steps": 4, "run.batch_size": 6, "run.precision": "float32", "run.log_every": 1, "run.validate_every": 2,
    "run.validation_steps": 1, "run.checkpoint_every": 2, "model.transformer.dim": 32, "model.transformer.depth": 2,
    "model.transformer.num_heads": 2, "model.transformer.num_kv_heads": 1, "model.transformer.head_dim": 16,
    "model.transformer.hidden_dim": 64,
}  # fmt: skip
WORLD = 2
KINDS = {
    "average": ["--run.ema_decay", "0.5", "--run.accumulate", "2"],
    "spread": ["--run.strategy", "fsdp", "--run.checkpoint_activations"],
}


def words_of(toy: Any, out: Path, kind: str) -> list[str]:
    data = ["--data.train", toy.coded, "--data.held_out", toy.coded, "--text_tokenizer", str(toy.text_tokenizer)]
    folders = ["--image_tokenizer", str(toy.image_tokenizer), "--out", str(out)]
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    return ["train", "pretrain", *data, *folders, *options, *KINDS[kind]]


def run_compiled(words: list[str]) -> None:
    """Train in processes that are free of the tests' checks, which compilers do not follow."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, *words, "--run.compile"]
    processes = []
    for rank in range(WORLD):
        env = os.environ | {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip
        processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said


def losses(out: Path, name: str) -> list[float]:
    with (out / "logs" / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a process that may have started CUDA does not fork")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_run_learns_the_same(toy: Any, tmp_path: Path, ranks: Any, kind: str) -> None:
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    assert ranks(WORLD, lambda _: main(words_of(toy, plain, kind))) == [0] * WORLD
    run_compiled(words_of(toy, compiled, kind))
    assert len(losses(plain, "train_loss")) == 4
    for name in ("train_loss", "held_out_loss", "gradient_norm"):
        assert losses(compiled, name) == pytest.approx(losses(plain, name), rel=1e-4), name
    expected, found = (ModelFolder.load(out / "model").model.state_dict() for out in (plain, compiled))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4)


if __name__ == "__main__":
    passing.BACKEND = "aot_eager"
    as_process()
