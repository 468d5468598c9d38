"""Write a file whole or not at all."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StagedFile:
    """Write a file beside its place under another name; `commit` moves it there in one step, `discard` removes it.

    Nothing at the target changes before `commit`, so a crash or a full disk leaves what was there.
    """

    def __init__(self, target: Path) -> None:
        """Name the target; nothing is opened yet."""
        self.target = target
        self.staged = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the staged file for writing; on leaving it is flushed to the disk.

        Raises ValueError when the disk is full, OSError when the folder cannot be written.
        """
        try:
            with self.staged.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError) and error.errno in FULL:
                raise ValueError(
                    f"writing {self.target} needs more room than its disk has ({error.strerror}); "
                    "make room or choose another folder; nothing of it was kept"
                ) from error
            raise

    def commit(self) -> None:
        """Put the staged file in its place and flush the folder."""
        self.staged.replace(self.target)
        folder = os.open(self.target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        """Remove the staged file, if there is one."""
        self.staged.unlink(missing_ok=True)
