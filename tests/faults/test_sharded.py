"""Weights that are spread over processes (FSDP2): kills, full disks and damaged checkpoints change nothing."""

import csv
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anymodal.learning.checkpoints import MANIFEST, newest, step_of
from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
from anymodal.learning.distributed import ShardedStrategy
from anymodal.learning.objective import UnifiedObjective
from anymodal.learning.unified_run import train_unified

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="a process that may have started CUDA does not fork"),
    pytest.mark.filterwarnings("ignore"),
]

STEPS = 8  # an epoch of drawing, which sees 3 of 24 samples a step
RUN = RunConfig(
    steps=STEPS, batch_size=6, strategy="fsdp", precision="float32", log_every=1, validate_every=0, checkpoint_every=2
)
SHARDS = [".metadata", "__0_0.distcp", "__1_0.distcp", MANIFEST, "meta.pt"]
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")
CLOCKS = {"tokens_per_second", "data_wait_share", "mfu"}
KILLED = {-signal.SIGKILL, -signal.SIGXFSZ}

Ranks = Callable[..., list[int]]


class Harm:
    """Kill both processes, or one in the middle of a file, when so many steps have been made."""

    def __init__(self, fault: dict[str, Any], out: Path) -> None:
        self.fault, self.folder, self.left = fault, str(out), fault.get("number", 0)

    def do(self) -> None:
        if self.fault["kind"] == "moment":
            threading.Timer(self.fault["delay_s"], os.killpg, (os.getpgid(0), signal.SIGKILL)).start()
        elif self.fault["kind"] == "file":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.fault["bytes"], resource.RLIM_INFINITY))
        else:
            sys.addaudithook(self._count)

    def _count(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and self.folder in str(arguments[0]):
            self.left -= 1
            if self.left < 0:
                os.killpg(os.getpgid(0), signal.SIGKILL)


def train(toy: Any, out: Path, ranks: Ranks, fault: dict[str, Any] | None = None) -> list[int]:
    """Run two processes, harmed as asked, each with a diary of what its steps were given."""
    original = UnifiedObjective.on_train_batch_start
    harm = Harm(fault, out) if fault else None
    out.mkdir(parents=True, exist_ok=True)

    def started(self: UnifiedObjective, batch: Any, batch_idx: int) -> None:
        original(self, batch, batch_idx)
        digest = hashlib.sha256(batch.host.ids.numpy().tobytes()).hexdigest()[:16]
        with (out / "diary.jsonl").open("a") as file:
            file.write(json.dumps([self.global_step, self.global_rank, digest]) + "\n")
        if harm is not None and harm.fault["rank"] == self.global_rank:
            if harm.fault["after"] == 0:
                harm.do()
            harm.fault["after"] -= 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnifiedObjective, "on_train_batch_start", started)
        return ranks(2, lambda _: start(toy, out), together=True)


def start(toy: Any, out: Path) -> int:
    stage, optimizer = StageConfig(seq_len=256), OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
    return train_unified(toy.parts(dropout=0.1), data=toy.data, stage=stage, optimizer=optimizer, run=RUN, out=out)


def logged(out: Path) -> list[dict[str, str]]:
    """Return all that was logged, without what a clock gave."""
    with (out / "logs" / "metrics.csv").open(newline="") as file:
        return [{key: each for key, each in row.items() if each and key not in CLOCKS} for row in csv.DictReader(file)]


def weights(out: Path) -> str:
    return hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()


def diary(out: Path) -> set[tuple[Any, ...]]:
    return {tuple(json.loads(line)) for line in (out / "diary.jsonl").read_text().splitlines()}


def assert_same(out: Path, whole: Path) -> None:
    assert logged(out) == logged(whole)
    assert weights(out) == weights(whole)
    assert diary(out) == diary(whole), "each attempt sees the same batches"
    assert not list((out / "checkpoints").glob(".*"))


@pytest.fixture(scope="module")
def whole(toy: Any, tmp_path_factory: pytest.TempPathFactory, ranks: Ranks) -> Path:
    """Return what an undisturbed run leaves."""
    out = tmp_path_factory.mktemp("whole")
    assert train(toy, out, ranks) == [0, 0]
    assert len(diary(out)) == 2 * STEPS
    return out


def fault(choice: random.Random, number: int) -> dict[str, Any]:
    """Choose where to kill: anywhere in time, between two operations on files, or within a file that is written."""
    kinds: list[dict[str, Any]] = [
        {"kind": "moment", "delay_s": choice.uniform(0, 0.15)},
        {"kind": "operation", "number": choice.randrange(40)},
        {"kind": "moment", "delay_s": choice.uniform(0, 0.15)},
        {"kind": "file", "bytes": choice.randrange(20_000, 200_000)},
    ]
    return {"after": choice.randrange(4), "rank": choice.randrange(2), **kinds[number % 4]}


def test_kills_change_nothing(toy: Any, whole: Path, tmp_path: Path, ranks: Ranks, long: bool, tally: Any) -> None:
    count, choice, killed, in_run = 50 if long else 5, random.Random(0), Counter[str](), Counter[str]()
    runs = (tmp_path / str(number) for number in itertools.count())
    out = next(runs)
    for number in itertools.count():
        harm = fault(choice, number) if tally.made < count else None
        codes = train(toy, out, ranks, harm)
        if codes == [0, 0]:  # it came to its end before it was hit
            assert_same(out, whole)
            tally.survived = tally.made
            if tally.made >= count:
                break
            out = next(runs)
            continue
        assert harm is not None
        assert KILLED & set(codes), codes
        assert set(codes) <= KILLED | {1}, codes
        tally.made += 1
        killed[harm["kind"]] += 1
        in_run[str(out)] += 1
    print(dict(killed), "kills;", max(in_run.values()), "of them in one run")
    assert len(killed) == 3 or not long
    assert max(in_run.values()) >= (5 if long else 2)


@pytest.mark.parametrize("moment", ["_own", "_commit"])
def test_a_kill_within_a_save_costs_no_checkpoint(
    toy: Any, whole: Path, tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch, tally: Any, moment: str
) -> None:
    original = getattr(ShardedStrategy, moment)

    def dies(self: ShardedStrategy, folder: Path, *more: Any) -> Any:
        if "step-00000004" in folder.name:
            os.killpg(os.getpgid(0), signal.SIGKILL)
        return original(self, folder, *more)

    with tally.fault():
        with monkeypatch.context() as patch:
            patch.setattr(ShardedStrategy, moment, dies)
            assert train(toy, tmp_path, ranks) == [-signal.SIGKILL] * 2
        assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")]
        left = newest(tmp_path / "checkpoints")
        assert left is not None
        assert step_of(left) == 2
        assert train(toy, tmp_path, ranks) == [0, 0]
        assert_same(tmp_path, whole)


def test_a_full_disk_of_one_process_stops_all_and_costs_no_checkpoint(
    toy: Any, whole: Path, tmp_path: Path, ranks: Ranks, capfd: pytest.CaptureFixture[str], long: bool, tally: Any
) -> None:
    last, original = whole / "checkpoints" / f"step-{STEPS:08d}.ckpt", ShardedStrategy.save_checkpoint
    count, kept = 20 if long else 3, {"step-00000002.ckpt"}
    for number in range(count):
        rank = number % 2
        size = (last / f"__{rank}_0.distcp").stat().st_size * number // count

        def save(self: ShardedStrategy, checkpoint: Any, path: Any, full: Any = (rank, size), **options: Any) -> None:
            if self.global_rank == full[0] and "step-00000004" in str(path):
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (full[1], full[1]))
            original(self, checkpoint, path, **options)

        with tally.fault(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(ShardedStrategy, "save_checkpoint", save)
            assert train(toy, tmp_path, ranks) == [1, 1], f"process {rank} full at {size}"
            lost = f"could not save {tmp_path}/checkpoints/step-00000004.ckpt (process {rank}: "
            assert f"process {1 - rank}: OSError: {lost}" in capfd.readouterr().out, "the full one may print to a file"
            assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == kept
    assert train(toy, tmp_path, ranks) == [0, 0]
    assert_same(tmp_path, whole)


def test_a_damaged_shard_is_seen_and_the_checkpoint_before_it_taken(
    toy: Any, whole: Path, tmp_path: Path, ranks: Ranks, caplog: pytest.LogCaptureFixture, long: bool, tally: Any
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    last, choice = tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}.ckpt", random.Random(0)
    assert sorted(path.name for path in last.iterdir()) == SHARDS
    for number in range(100 if long else 20):
        path = last / SHARDS[number % len(SHARDS)]
        content = path.read_bytes()
        place, flipped = choice.randrange(len(content)), number // len(SHARDS) % 2
        bit = bytes([content[place] ^ 1 << choice.randrange(8)]) + content[place + 1 :] if flipped else b""
        path.write_bytes(content[:place] + bit)
        with tally.fault():
            found = newest(last.parent)
            assert found is not None
            assert step_of(found) == STEPS - 2, (path, place)
        path.write_bytes(content)
    assert f"{last} is damaged" in caplog.text
    with tally.fault():
        (last / "__1_0.distcp").unlink()
        assert train(toy, tmp_path / "run", ranks) == [0, 0]
        assert_same(tmp_path / "run", whole)
