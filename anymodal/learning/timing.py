"""How many steps fit into a time: measured on the real training, with throw-away weights."""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from anymodal.learning.config import RunConfig

log = logging.getLogger(__name__)

TIMED_STEPS = 5
ROUNDS = 3  # at most, where steps that should take equally long do not
UNSTEADY = 1.5  # the slowest step of a round by its fastest
SPARE = 0.1  # share of a budget that is left for validation, checkpoints, and a machine that slows down

Training = Callable[[RunConfig, Path, Callable[[int], None]], int]


def seconds_a_step(train: Training, run: RunConfig, folder: Path) -> float:
    """Return the median seconds of a step of `train(run, out, show)`, run for a few steps in a folder that is removed.

    `train` calls `show(step)` every `run.sample_every` steps, as the trainings of this package do. Other work on the
    machine shows in steps of uneven length; these are timed again, and the quickest round counts: work only adds time.

    Raises:
        KeyboardInterrupt: the training was stopped.
    """
    medians = []
    for _ in range(ROUNDS):
        seconds = _timed(train, run, folder)
        medians.append(median(seconds))
        if max(seconds) <= UNSTEADY * min(seconds):
            break
        log.warning(
            "steps took %.2f to %.2f s: other work on this machine keeps them waiting.", min(seconds), max(seconds)
        )
    return min(medians)


def _timed(train: Training, run: RunConfig, folder: Path) -> list[float]:
    """Return the seconds of the steps behind the first one."""
    ends: list[float] = []
    timed = replace(
        run, steps=TIMED_STEPS, sample_every=1, validate_every=0, checkpoint_every=TIMED_STEPS, log_every=TIMED_STEPS
    )
    scratch = Path(tempfile.mkdtemp(prefix="timing-", dir=folder))
    try:
        code = train(timed, scratch, lambda _: ends.append(time.perf_counter()))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if code:
        raise KeyboardInterrupt
    assert len(ends) == TIMED_STEPS, "a training shows every step where sample_every is 1"
    return [end - start for start, end in zip(ends, ends[1:], strict=False)]


def steps_within(seconds: float, step_seconds: float, *, least: int, most: int) -> int:
    """Return how many steps fit into `seconds`, some of which stay spare, between `least` and `most`.

    >>> steps_within(100.0, 0.5, least=10, most=1000)
    180

    Raises:
        ValueError: a step takes no time, or `least` is above `most`.
    """
    if step_seconds <= 0 or least > most:
        raise ValueError(f"steps must take time and least be at most most, got {step_seconds} s, {least} and {most}.")
    return max(least, min(most, int((1 - SPARE) * seconds / step_seconds)))
