"""Runs that are disturbed at a step."""

import os
import signal
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest

from anymodal.learning import callbacks, fitting


class StopAt(pl.Callback):
    """Send one of the processes a signal within a step."""

    def __init__(self, step: int, number: int, rank: int) -> None:
        self.step, self.number, self.rank = step, number, rank

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step - 1, self.rank):
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="session")
def disturb() -> Callable[..., None]:
    """Add callbacks to every run, as long as a patch lasts."""

    def patched(patch: pytest.MonkeyPatch, *added: pl.Callback) -> None:
        def with_these(*arguments: Any) -> list[pl.Callback]:
            first, *others = callbacks.callbacks_for(*arguments)
            return [first, *added, *others]

        patch.setattr(fitting, "callbacks_for", with_these)

    return patched


@pytest.fixture(scope="session")
def interrupt(disturb: Callable[..., None]) -> Callable[..., None]:
    """Stop a run by a signal within a step."""

    def patched(patch: pytest.MonkeyPatch, step: int, *, number: int = signal.SIGINT, rank: int = 0) -> None:
        disturb(patch, StopAt(step, number, rank))

    return patched
