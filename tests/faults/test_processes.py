"""What one process reads, or computes, that is no good: all processes do the same about it."""

import csv
import os
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anymodal.learning import checkpoints
from anymodal.learning.checkpoints import step_of
from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
from anymodal.learning.objective import UnifiedObjective
from anymodal.learning.unified_run import train_unified
from anymodal.model.folder import ModelFolder

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="a process that may have started CUDA does not fork"),
    pytest.mark.filterwarnings("ignore"),
]

RUN = RunConfig(steps=3, batch_size=6, precision="float32", log_every=1, validate_every=0, checkpoint_every=1)
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
SECOND = 1  # the process in which faults happen

Ranks = Callable[..., list[int]]


def train(toy: Any, out: Path, strategy: Any) -> int:
    run = replace(RUN, strategy=strategy)
    return train_unified(
        toy.parts(), data=toy.data, stage=StageConfig(seq_len=256), optimizer=OPTIMIZER, run=run, out=out
    )


def weights(out: Path) -> dict[str, Tensor]:
    return ModelFolder.load(out / "model").model.state_dict()


def assert_learned(out: Path, expected: dict[str, Tensor]) -> None:
    found = weights(out)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not list((out / "checkpoints").glob(".*"))


@pytest.mark.usefixtures("tally")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_reads_whole_checkpoints_and_its_word_holds_for_all(
    toy: Any, tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    out, told = tmp_path / "run", tmp_path / "told"
    assert ranks(2, lambda _: train(toy, out, strategy)) == [0, 0]
    expected, last = weights(out), out / "checkpoints" / f"step-{RUN.steps:08d}.ckpt"
    for path in last.glob("__1*") if last.is_dir() else [last]:
        path.write_bytes(path.read_bytes()[:-1])
    read = checkpoints.is_whole

    def noted(path: Path) -> bool:
        with told.open("a") as file:
            file.write(f"{os.environ['RANK']} {step_of(path)}\n")
        return read(path)

    monkeypatch.setattr(checkpoints, "is_whole", noted)
    assert ranks(2, lambda _: train(toy, out, strategy)) == [0, 0]
    assert told.read_text() == f"0 {RUN.steps}\n0 {RUN.steps - 1}\n"
    assert_learned(out, expected)


@pytest.mark.usefixtures("tally")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_loss_that_is_not_finite_in_one_process_skips_the_step_in_all(
    toy: Any, tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    original = UnifiedObjective._combine

    def broken(self: UnifiedObjective, *arguments: Any) -> Tensor:
        bad = (self.global_step, self.global_rank) == (1, SECOND) and self.training
        return original(self, *arguments) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(UnifiedObjective, "_combine", broken)
    assert ranks(2, lambda _: train(toy, tmp_path, strategy)) == [0, 0]
    assert all(bool(tensor.isfinite().all()) for tensor in weights(tmp_path).values())
    with (tmp_path / "logs" / "metrics.csv").open(newline="") as file:
        norms = [float(row["gradient_norm"]) for row in csv.DictReader(file) if row["gradient_norm"]]
    assert [isfinite(norm) for norm in norms] == [True, False, True]
