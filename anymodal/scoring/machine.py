"""What a result was measured on."""

import os
import platform
import resource
import sys
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")


def facts() -> dict[str, str]:
    """Return the machine in words: processor, cores that this process may use, accelerator, versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {"Processor": f"{cpu_name()}, {cores} core{'s' * (cores != 1)}, {torch.get_num_threads()} used"}
    if torch.cuda.is_available():
        found["Accelerator"] = torch.cuda.get_device_name()
    found["Software"] = f"Python {platform.python_version()}, torch {torch.__version__}"
    found["System"] = f"{platform.system()} {platform.machine()}"
    return found


def cpu_name() -> str:
    """Return the processor's name, or its architecture where the system tells no name."""
    if CPU_INFO.is_file():
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """Return the most memory that this process, or a process that it waited for, has held at once."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
