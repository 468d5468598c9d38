"""Staged files: whole or not at all."""

import errno
from pathlib import Path

import pytest

from anymodal.data.files import StagedFile


def test_nothing_changes_before_commit(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    staged = StagedFile(target)
    with staged.open() as stream:
        stream.write(b"new")
    assert target.read_bytes() == b"old"
    staged.commit()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with (
        pytest.raises(ValueError, match=r"a\.bin needs more room than its disk has"),
        StagedFile(target).open() as stream,
    ):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), StagedFile(target).open():
        raise PermissionError(errno.EACCES, "Permission denied")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
