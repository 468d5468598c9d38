"""What becomes of memory that a training on a CPU frees."""

import ctypes
import platform

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of mallopt(3)
MOST, STEP = 2**31 - 1, 2**28


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, for the next step to take; say whether it does (glibc).

    By default large tensors go back to the system when they are freed, which then clears every page of the next: a
    tenth to a fifth of a step on a CPU was measured to go there.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, MOST), (TOP_PAD, STEP)))
