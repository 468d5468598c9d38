"""Freed memory is kept: a step of training does not wait for the system to clear pages."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from anymodal.learning.allocation import keep_freed_memory

assert sys.argv[1] == "as it is" or keep_freed_memory()
numbers = torch.ones(2**24)  # 64 MiB


def step() -> int:
    # pages that are cleared
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    (numbers * 2).add(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


print(sum([step() for _ in range(12)][-4:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
def test_freed_memory_is_taken_again() -> None:
    def faults(how: str) -> int:
        run = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True)
        return int(run.stdout)

    assert faults("kept") < faults("as it is") / 8


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from anymodal.learning.allocation import keep_freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
