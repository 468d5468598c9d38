"""A kill, a full disk, a number that is not finite: what all processes do, and what is left on the disk."""

import csv
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anymodal.learning import checkpoints
from anymodal.learning.checkpoints import MANIFEST, newest, step_of
from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
from anymodal.learning.distributed import ShardedStrategy
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


@pytest.fixture(scope="module")
def whole(toy: Any, tmp_path_factory: pytest.TempPathFactory, ranks: Ranks) -> dict[str, Tensor]:
    """Return what an undisturbed run of two processes learns."""
    out = tmp_path_factory.mktemp("whole")
    assert ranks(2, lambda _: train(toy, out, "fsdp")) == [0, 0]
    return weights(out)


def assert_learned(out: Path, expected: dict[str, Tensor]) -> None:
    found = weights(out)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not list((out / "checkpoints").glob(".*"))


def test_a_kill_within_a_save_costs_no_checkpoint(
    toy: Any, whole: dict[str, Tensor], tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment in ("_own", "_commit"):
        original = getattr(ShardedStrategy, moment)

        def dies(self: ShardedStrategy, folder: Path, *more: Any, original: Any = original) -> Any:
            if "step-00000002" in folder.name:
                os.killpg(os.getpgid(0), signal.SIGKILL)
            return original(self, folder, *more)

        with monkeypatch.context() as patch:
            patch.setattr(ShardedStrategy, moment, dies)
            assert ranks(2, lambda _: train(toy, tmp_path, "fsdp"), together=True) == [-signal.SIGKILL] * 2
        assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")]
        left = newest(tmp_path / "checkpoints")
        assert left is not None
        assert step_of(left) == 1
    assert ranks(2, lambda _: train(toy, tmp_path, "fsdp")) == [0, 0]
    assert_learned(tmp_path, whole)


def test_a_full_disk_of_one_process_stops_all_and_costs_no_checkpoint(
    toy: Any, whole: dict[str, Tensor], tmp_path: Path, ranks: Ranks, capfd: pytest.CaptureFixture[str]
) -> None:
    def fills(rank: int) -> int:
        original = ShardedStrategy.save_checkpoint

        def save(self: ShardedStrategy, checkpoint: Any, filepath: Any, storage_options: Any = None) -> None:
            if rank == SECOND and "step-00000002" in str(filepath):
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))
            original(self, checkpoint, filepath, storage_options)

        ShardedStrategy.save_checkpoint = save  # type: ignore[method-assign]
        return train(toy, tmp_path, "fsdp")

    assert ranks(2, fills) == [1, 1]
    said = capfd.readouterr().out
    for rank in (0, SECOND):
        assert f"process {rank}: OSError: could not save {tmp_path}/checkpoints/step-00000002.ckpt (" in said
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001.ckpt"]
    assert ranks(2, lambda _: train(toy, tmp_path, "fsdp")) == [0, 0]
    assert_learned(tmp_path, whole)


def test_a_damaged_shard_is_seen_and_the_checkpoint_before_it_taken(
    toy: Any, whole: dict[str, Tensor], tmp_path: Path, ranks: Ranks, caplog: pytest.LogCaptureFixture
) -> None:
    assert ranks(2, lambda _: train(toy, tmp_path, "fsdp")) == [0, 0]
    last = tmp_path / "checkpoints" / f"step-{RUN.steps:08d}.ckpt"
    files = sorted(path for path in last.iterdir())
    assert [path.name for path in files] == [".metadata", "__0_0.distcp", "__1_0.distcp", MANIFEST, "meta.pt"]
    for path in files:
        content = path.read_bytes()
        place = len(content) // 2
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        found = newest(last.parent)
        assert found is not None
        assert step_of(found) == RUN.steps - 1, path
        path.write_bytes(content[:place])
        assert newest(last.parent) == found, path
        path.write_bytes(content)
    assert f"{last} is damaged" in caplog.text
    (last / "__1_0.distcp").unlink()
    assert ranks(2, lambda _: train(toy, tmp_path, "fsdp")) == [0, 0]
    assert_learned(tmp_path, whole)


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
