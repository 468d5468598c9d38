"""Processes that prepare batches: one that dies or hangs ends the run with advice, never in silence."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch.utils.data import DataLoader, Dataset, Sampler

LOST = "DataLoader worker"  # how torch begins to say that a process died


class WorkerLoader(DataLoader[Any]):
    """Make items in `num_workers` processes, or in this one where there are none.

    torch's own `timeout` does not see a process that hangs while it hands a tensor over.
    """

    def __init__(self, dataset: Dataset[Any], sampler: Sampler[int], *, num_workers: int, timeout_s: float) -> None:
        """Prepare to begin; processes start with the first item, and a timeout of 0 waits for ever."""
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=_leave_signals_alone,
        )
        self.timeout_s = timeout_s
        self.waited_s = 0.0  # for items, since this loader was made
        self._workers: list[Any] = []

    def __iter__(self) -> Any:
        """Yield items.

        Raises:
            TimeoutError: one did not come in time.
            RuntimeError: a process died; it may be raised anywhere in the training process, see `explained`.
        """
        items = super().__iter__()
        while True:
            hung = threading.Event()
            watch = threading.Timer(self.timeout_s, self._kill, [hung])
            watch.daemon = True
            if self._workers and self.timeout_s:
                watch.start()
            began = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if hung.is_set():
                    raise TimeoutError(
                        f"processes that prepare batches delivered none for {self.timeout_s:g} s; see that the disk of "
                        "the shards answers, raise data.worker_timeout_s if a batch takes that long, and run the same "
                        "command again."
                    ) from error
                raise
            finally:
                watch.cancel()
                self.waited_s += time.perf_counter() - began
            yield item

    def _get_iterator(self) -> Any:
        iterator = cast(Any, super()._get_iterator())
        self._workers = getattr(iterator, "_workers", [])
        for worker in self._workers:
            worker._popen.terminate = worker._popen.kill  # it does not listen to less, and may hang
        return iterator

    def _kill(self, hung: threading.Event) -> None:
        """End all processes, which ends the wait for them, wherever it is."""
        hung.set()
        for worker in self._workers:
            worker.kill()


def _leave_signals_alone(_worker: int) -> None:
    """Leave it to the training process to end the step and save: terminals and clusters tell all processes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def explained() -> Iterator[None]:
    """Say what to do about processes that were lost.

    Raises:
        TimeoutError: one hung.
        ChildProcessError: one died.
    """
    try:
        yield
    except RuntimeError as error:
        before = error.__context__
        while before is not None:
            if isinstance(before, TimeoutError):  # torch noticed, too, that it was killed
                raise before from None
            before = before.__context__
        if str(error).startswith(LOST):
            raise ChildProcessError(
                f"a process that prepares batches has died ({error}); mostly memory was short: lower data.num_workers "
                "or run.batch_size, and run the same command again."
            ) from error
        raise
