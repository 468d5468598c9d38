"""Write a folder whole or not at all."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write beside `target`, which it replaces when all is written.

    What a process that was killed in here left behind is cleared up by the next one.

    Raises:
        ValueError: `target` holds something else than what is written here, which has a config.json.
        OSError: the disk is full or read-only; what was there stays.
    """
    _recover(target)
    if target.exists() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise ValueError(f"{target} is no model folder and is not empty; save into a new folder.")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    before = partial.with_suffix(".before")
    try:
        partial.mkdir(parents=True)
        yield partial
        if target.exists():
            target.rename(before)
        partial.rename(target)
    except OSError as error:
        raise OSError(f"could not save {target} ({error}); free some space and save again.") from error
    finally:
        _recover(target)


def _recover(target: Path) -> None:
    """Put the folder back that was moved aside for one that never came, and remove what is left over."""
    stem = f".{glob.escape(target.name)}.*"
    aside = sorted(target.parent.glob(f"{stem}.before"))
    if aside and not target.exists():
        aside.pop().rename(target)
    for path in [*aside, *target.parent.glob(f"{stem}.partial")]:
        shutil.rmtree(path, ignore_errors=True)
