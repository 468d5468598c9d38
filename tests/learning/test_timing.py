import time
from collections.abc import Callable
from pathlib import Path

import pytest

from anymodal.learning.config import RunConfig
from anymodal.learning.timing import ROUNDS, TIMED_STEPS, seconds_a_step, steps_within


def test_steps_are_timed_in_a_folder_that_is_removed(tmp_path: Path) -> None:
    def train(run: RunConfig, out: Path, show: Callable[[int], None]) -> int:
        assert (run.steps, run.sample_every, run.validate_every, run.batch_size) == (TIMED_STEPS, 1, 0, 5)
        (out / "left over").touch()
        time.sleep(0.2)  # what comes before the first step does not count
        for step in range(run.steps):
            time.sleep(0.02)
            show(step)
        return 0

    assert seconds_a_step(train, RunConfig(batch_size=5), tmp_path) == pytest.approx(0.02, abs=0.015)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rounds", "expected", "timed"),
    [
        ([[1.0, 1.2, 1.1, 1.4]], 1.15, 1),
        ([[1.0, 1.1, 1.2, 6.0], [1.1, 1.0, 1.0, 1.0]], 1.0, 2),
        ([[5.0, 4.0, 5.0, 9.0], [1.0, 1.0, 1.0, 2.0], [3.0, 3.0, 3.0, 5.0]], 1.0, ROUNDS),
    ],
)
def test_uneven_steps_are_timed_again_and_the_quickest_round_counts(
    rounds: list[list[float]], expected: float, timed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, begun = 0.0, 0
    monkeypatch.setattr("anymodal.learning.timing.time.perf_counter", lambda: now)

    def train(run: RunConfig, out: Path, show: Callable[[int], None]) -> int:
        nonlocal now, begun
        seconds = [30.0, *rounds[begun]]
        begun += 1
        for step in range(run.steps):
            now += seconds[step]
            show(step)
        return 0

    assert seconds_a_step(train, RunConfig(), tmp_path) == pytest.approx(expected)
    assert begun == timed


def test_a_stopped_training_stops_the_timing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        seconds_a_step(lambda *_: 130, RunConfig(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seconds", "steps"), [(100.0, 90), (1.0, 4), (-5.0, 4), (1e6, 500)])
def test_steps_fit_between_least_and_most(seconds: float, steps: int) -> None:
    assert steps_within(seconds, 1.0, least=4, most=500) == steps


def test_impossible_bounds_are_named() -> None:
    with pytest.raises(ValueError, match="least be at most most"):
        steps_within(1.0, 1.0, least=5, most=4)
