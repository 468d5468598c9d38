"""Processes that prepare batches: one that dies or hangs ends the run with advice, never in silence."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch.utils.data import DataLoader, Dataset, Sampler

LOST, SLOW = "DataLoader worker", "DataLoader timed out"  # how torch's errors begin


class WorkerLoader(DataLoader[Any]):
    """Make items in `num_workers` processes, or in this one where there are none.

    Raises:
        RuntimeError: a process died, or took longer than `timeout_s`; `explained` says what to do.
    """

    def __init__(self, dataset: Dataset[Any], sampler: Sampler[int], *, num_workers: int, timeout_s: float) -> None:
        """Prepare to begin; processes start with the first item."""
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            timeout=timeout_s if num_workers else 0,
            worker_init_fn=_leave_signals_alone,
        )

    def _get_iterator(self) -> Any:
        iterator = cast(Any, super()._get_iterator())
        for worker in getattr(iterator, "_workers", ()):
            worker._popen.terminate = worker._popen.kill  # by now it does not listen, and may hang
        return iterator


def _leave_signals_alone(_worker: int) -> None:
    """Leave it to the training process to end the step and save: terminals and clusters tell all processes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def explained() -> Iterator[None]:
    """Say what to do about processes that were lost.

    Raises:
        TimeoutError: one took too long.
        ChildProcessError: one died.
    """
    try:
        yield
    except RuntimeError as error:
        if str(error).startswith(SLOW):
            raise TimeoutError(
                f"a process that prepares batches did not deliver in time ({error}); see that the disk of the shards "
                "answers, raise data.worker_timeout_s if batches take that long, and run the same command again."
            ) from error
        if str(error).startswith(LOST):
            raise ChildProcessError(
                f"a process that prepares batches has died ({error}); mostly memory was short: lower data.num_workers "
                "or run.batch_size, and run the same command again."
            ) from error
        raise
