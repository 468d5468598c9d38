"""Processes that prepare batches, and what torch says of them, with advice; tests/faults/test_workers.py harms some."""

import os
import signal

import pytest
import torch
from torch.utils.data import Dataset

from anymodal.learning.batches import StepSampler
from anymodal.learning.loading import WorkerLoader, explained


class Numbers(Dataset[tuple[int, int, bool]]):
    """Item k is k, made in a process that says which signals it does not hear."""

    def __getitem__(self, number: int) -> tuple[int, int, bool]:
        deaf = all(signal.getsignal(each) is signal.SIG_IGN for each in (signal.SIGINT, signal.SIGTERM))
        return number, os.getpid(), deaf

    def __len__(self) -> int:
        return 4


class Slow(Dataset[torch.Tensor]):
    def __getitem__(self, number: int) -> torch.Tensor:
        signal.pause()
        raise AssertionError("nothing wakes it")


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.filterwarnings("ignore:.*processes in total.*")
def test_items_come_in_order_from_processes_that_leave_signals_alone(num_workers: int) -> None:
    loader = WorkerLoader(Numbers(), StepSampler(0, 4), num_workers=num_workers, timeout_s=60.0)
    numbers, processes, deaf = zip(*loader, strict=True)
    assert numbers == (0, 1, 2, 3)
    assert (set(processes) == {os.getpid()}) == (num_workers == 0)
    assert set(deaf) == {num_workers > 0}


def test_one_that_hangs_is_not_waited_for() -> None:
    loader = WorkerLoader(Slow(), StepSampler(0, 1), num_workers=1, timeout_s=0.5)
    with pytest.raises(TimeoutError, match=r"none for 0.5 s; .* raise data.worker_timeout_s"), explained():
        next(iter(loader))


def test_one_that_died_is_explained() -> None:
    with pytest.raises(ChildProcessError, match=r"killed by signal: Killed.*lower data.num_workers"), explained():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="^shapes do not match$"), explained():
        raise RuntimeError("shapes do not match")


def test_one_that_was_killed_because_it_hung_is_one_that_hung() -> None:
    with pytest.raises(TimeoutError, match="^none for 2 s$"), explained():
        try:
            raise TimeoutError("none for 2 s")
        finally:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
