"""Show how far a long pass has come."""

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")
PATIENCE_S = 2.0  # what is over by then needs no bar


def track(items: Iterable[Item], what: str) -> Iterator[Item]:
    """Yield the items; once that has taken two seconds, show a progress bar on standard error."""
    started = time.monotonic()
    stream = iter(items)
    done = 0
    for item in stream:
        done += 1
        yield item
        if time.monotonic() - started > PATIENCE_S:
            break
    else:
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    total = len(items) if isinstance(items, Sized) else None
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total, completed=done)
        for item in stream:
            yield item
            progress.advance(task)
