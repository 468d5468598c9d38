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


@pytest.mark.parametrize(
    ("message", "kind", "advice"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", ChildProcessError, "lower data.num_workers"),
        ("DataLoader timed out after 2 seconds", TimeoutError, "raise data.worker_timeout_s"),
        ("shapes do not match", RuntimeError, "^shapes do not match$"),
    ],
)
def test_what_torch_says_is_explained(message: str, kind: type[Exception], advice: str) -> None:
    with pytest.raises(kind, match=advice), explained():
        raise RuntimeError(message)


def test_torch_says_it_so() -> None:
    with pytest.raises(RuntimeError, match="^DataLoader timed out after 0.1 seconds"):
        next(iter(WorkerLoader(Slow(), StepSampler(0, 1), num_workers=1, timeout_s=0.1)))
