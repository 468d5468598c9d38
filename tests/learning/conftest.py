"""Runs of several processes on this machine."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

Ranks = Callable[..., list[int]]


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    """Call a function in as many forked processes as asked for, each with the environment that torchrun gives it.

    Returns the exit codes, -9 for a process that was still alive after `timeout_s`.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process would wait in vain for the threads of OpenMP

    def run(world: int, call: Callable[[int], Any], timeout_s: float = 60.0) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [_fork(rank, world, port, call) for rank in range(world)]
        return [_code(child, time.monotonic() + timeout_s) for child in children]

    yield run
    torch.set_num_threads(threads)


def _fork(rank: int, world: int, port: int, call: Callable[[int], Any]) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip
        cast_rank(rank)
        code = call(rank) or 0
    except BaseException as error:
        print(f"process {rank}: {type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(code)


def cast_rank(rank: int) -> None:
    """Tell Lightning, which asks when it is imported."""
    rank_zero_only.rank = rank


def _code(child: int, deadline: float) -> int:
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL
