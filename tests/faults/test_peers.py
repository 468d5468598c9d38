"""One process of many dies, hangs or never comes: the others end and say so, in the time that the run gives them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anymodal.learning.checkpoints import newest, step_of
from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
from anymodal.learning.objective import UnifiedObjective
from anymodal.learning.unified_run import train_unified

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="a process that may have started CUDA does not fork"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("tally"),
]

RUN = RunConfig(
    steps=3, batch_size=6, precision="float32", log_every=1, validate_every=0, checkpoint_every=1, peer_timeout_s=6.0
)
SECOND = 1  # the process in which faults happen
STEP, SAVE = "on_train_batch_start", "on_save_checkpoint"
CHILDREN = "/proc/{0}/task/{0}/children"

Ranks = Callable[..., list[int]]


def train(toy: Any, out: Path, strategy: Any) -> int:
    run = replace(RUN, strategy=strategy)
    return train_unified(
        toy.parts(), data=toy.data, stage=StageConfig(seq_len=256), optimizer=OptimizerConfig(), run=run, out=out
    )


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGKILL, STEP), (signal.SIGKILL, SAVE), (signal.SIGSTOP, STEP)],
    ids=["dies", "dies in a save", "hangs"],
)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_that_dies_or_hangs_ends_the_others(
    toy: Any, tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    strategy: str, number: signal.Signals, moment: str,
) -> None:  # fmt: skip
    original = getattr(UnifiedObjective, moment)

    def harmed(self: UnifiedObjective, *arguments: Any) -> None:
        if (self.global_step, self.global_rank) == (2, SECOND):
            os.kill(os.getpid(), number)
        original(self, *arguments)

    monkeypatch.setattr(UnifiedObjective, moment, harmed)
    codes = ranks(2, lambda _: train(toy, tmp_path, strategy), timeout_s=25)
    assert codes == [1, -signal.SIGKILL if number == signal.SIGKILL else 124], "the first must end by itself"
    said = capfd.readouterr().out
    assert "process 0: ConnectionError: the processes of this run have lost each other (" in said
    assert "one has ended, or did not answer for 6 s; see what it wrote last, raise run.peer_timeout_s" in said
    left = newest(tmp_path / "checkpoints")
    assert left is not None
    assert step_of(left) == (1 if (strategy, moment) == ("fsdp", SAVE) else 2), "of shards all are needed"


def test_one_that_never_comes_is_not_waited_for(toy: Any, tmp_path: Path, ranks: Ranks, capfd: Any) -> None:
    assert ranks(2, lambda rank: train(toy, tmp_path, "ddp") if rank == 0 else 0, timeout_s=40) == [1, 0]
    assert "process 0: ConnectionError: the processes of this run have lost each other (" in capfd.readouterr().out


@pytest.mark.skipif(not Path(CHILDREN.format(os.getpid())).exists(), reason="the system does not tell its children")
def test_the_program_takes_a_hung_process_with_it(programs: Any, tmp_path: Path, root: Path) -> None:
    words = ["--run.devices", "2", "--run.peer_timeout_s", "20", "--run.steps", "1000", "--run.validate_every", "0"]
    command = [sys.executable, "-m", "anymodal", *programs.words, *words, "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, process_group=0)
    try:
        while process.poll() is None and not list((tmp_path / "checkpoints").glob("*.ckpt")):
            time.sleep(0.02)
        started = [int(each) for each in Path(CHILDREN.format(process.pid)).read_text().split()]
        (second,) = (each for each in started if "anymodal" in Path(f"/proc/{each}/cmdline").read_text())
        os.kill(second, signal.SIGSTOP)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 2, said
    assert re.search("anymodal: error: the processes of this run have lost each other .* for 20 s; see what", said)
    assert not Path(f"/proc/{second}").exists()
