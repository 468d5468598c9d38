import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch

from anymodal.learning.checkpoints import DurableCheckpointIO, StepCheckpoints, is_whole, newest, step_of

IO = DurableCheckpointIO()


def save(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:08d}.ckpt"
    IO.save_checkpoint({"step": step, "weights": torch.full((100,), step)}, path)
    return path


def test_round_trip(tmp_path: Path) -> None:
    path = save(tmp_path / "new", 3)
    assert IO.load_checkpoint(path)["weights"].tolist() == [3] * 100
    assert is_whole(path)
    assert step_of(path) == 3
    IO.remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def lose_checksum(path: Path) -> None:
    path.with_name(path.name + ".sha256").write_text("{")


@pytest.mark.parametrize("damage", [cut, flip, lose_checksum])
def test_a_damaged_one_falls_back_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any) -> None:
    first, second = save(tmp_path, 3), save(tmp_path, 6)
    assert newest(tmp_path) == second
    damage(second)
    with caplog.at_level(logging.WARNING, logger="anymodal"):
        assert newest(tmp_path) == first
    assert f"{second} is damaged" in caplog.text
    damage(first)
    assert newest(tmp_path) is None


def test_orphans_are_swept(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    (tmp_path / ".step-00000006.ckpt.partial").write_bytes(b"half")
    (tmp_path / "step-00000006.ckpt.sha256").write_text("{}")
    assert newest(tmp_path) == path
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, f"{path.name}.sha256"]


def test_two_are_kept_and_a_damaged_one_is_written_again(tmp_path: Path) -> None:
    callback = StepCheckpoints(tmp_path, every=2)
    trainer = Mock(spec=pl.Trainer, max_steps=7, is_global_zero=True, enable_validation=False)
    trainer.save_checkpoint = lambda path: IO.save_checkpoint({}, path)
    trainer._logger_connector = Mock()
    saved = []
    for step in range(1, 8):
        trainer.global_step, trainer.should_stop = step, step == 5
        callback.on_train_batch_end(trainer, pl.LightningModule(), None, None, 0)
        saved.append([step_of(path) for path in sorted(tmp_path.glob("*.ckpt"))])
    assert saved == [[], [2], [2], [2, 4], [4, 5], [5, 6], [6, 7]]
    path = tmp_path / "step-00000007.ckpt"
    cut(path)
    callback.save(trainer)
    assert not is_whole(path), "a step is saved once"
    StepCheckpoints(tmp_path, every=2).save(trainer)
    assert is_whole(path)


def test_a_validation_of_the_same_step_comes_first(tmp_path: Path) -> None:
    """Or a run that resumes there would leave it out, and its best model with it."""
    callback = StepCheckpoints(tmp_path, every=2)
    trainer = Mock(spec=pl.Trainer, max_steps=9, is_global_zero=True, should_stop=False, enable_validation=True)
    trainer.save_checkpoint = lambda path: IO.save_checkpoint({}, path)
    trainer.val_check_batch, trainer._logger_connector = 4, Mock()
    saved = []
    for step in range(1, 5):
        trainer.global_step = step
        callback.on_train_batch_end(trainer, pl.LightningModule(), None, None, step - 1)
        saved.append([step_of(path) for path in sorted(tmp_path.glob("*.ckpt"))])
    assert saved == [[], [2], [2], [2]]
    callback.on_validation_end(trainer, pl.LightningModule())
    assert newest(tmp_path) == tmp_path / "step-00000004.ckpt"


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 3)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left.*run the same command again"):
        save(tmp_path, 6)
    assert newest(tmp_path) == path
    assert len(list(tmp_path.iterdir())) == 2


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.ckpt"
    IO.save_checkpoint({"x": SimpleNamespace()}, path)
    with pytest.raises(Exception, match="[Ww]eights only"):
        IO.load_checkpoint(path)
