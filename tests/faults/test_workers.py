"""Processes that prepare batches die or hang: the run ends with advice, and never hangs itself."""

import signal
from pathlib import Path
from typing import Any

WORDS = ("--data.num_workers", "2", "--run.steps", "1000", "--run.validate_every", "0")


def test_a_worker_that_dies_ends_the_run(programs: Any, tmp_path: Path) -> None:
    ended = programs(tmp_path, *WORDS, after=2, kind="harm_worker", signal=int(signal.SIGKILL))
    assert ended.code == 2, ended.log
    assert "a process that prepares batches has died" in ended.log
    assert "lower data.num_workers" in ended.log
    assert "Traceback" not in ended.log
    assert not ended.left
    print(f"ended after {ended.seconds:.1f} s")


def test_a_worker_that_hangs_ends_the_run(programs: Any, tmp_path: Path) -> None:
    words = [*WORDS, "--data.worker_timeout_s", "2"]
    ended = programs(tmp_path, *words, after=2, kind="harm_worker", signal=int(signal.SIGSTOP))
    assert ended.code == 2, ended.log
    assert "did not deliver in time (DataLoader timed out after 2" in ended.log
    assert "raise data.worker_timeout_s" in ended.log
    assert "Traceback" not in ended.log
    assert not ended.left
    print(f"ended after {ended.seconds:.1f} s")
