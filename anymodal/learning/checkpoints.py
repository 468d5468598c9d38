"""Checkpoints that survive a kill or a full disk: whole or absent, checked by content, two kept."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import CheckpointIO

log = logging.getLogger(__name__)

NAME = "step-{:08d}.ckpt"
MANIFEST = "manifest.json"  # of a checkpoint that is a folder of shards; that of a file stands beside it
KEPT = 2
CHUNK_BYTES = 2**22


class DurableCheckpointIO(CheckpointIO):
    """Write beside the target, flush to disk, write a checksum, rename.

    Lightning's own writer stages in TMPDIR; on another file system a kill left unreadable files.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint, whole or not at all.

        Raises:
            OSError: the disk is full or read-only; the checkpoints before this one stay as they were.
        """
        del storage_options
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.partial")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            write_manifest(_manifest(path), {"sha256": _sha256(temporary)})
            temporary.replace(path)
            sync_folder(path.parent)
        except (OSError, RuntimeError) as error:
            raise cannot_save(path, str(error)) from error
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint that `newest` found whole; nothing but tensors and plain data is unpickled.

        Raises:
            ValueError: it is a folder of shards.
        """
        del weights_only
        if Path(path).is_dir():
            raise ValueError(f"{path} was saved in shards; resume it with run.strategy fsdp, as it was begun.")
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint with its checksum."""
        path = Path(path)
        if path.is_dir():
            going = path.with_name(f".{path.name}.partial")
            path.replace(going)  # half a folder must not keep the name of a whole one
            shutil.rmtree(going)
        path.unlink(missing_ok=True)
        _manifest(path).unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Tell whether a checkpoint, a file or a folder of shards, has the content that was written."""
    manifest = path / MANIFEST if path.is_dir() else _manifest(path)
    try:
        noted = json.loads(manifest.read_text(encoding="utf-8"))
        if path.is_dir():
            return bool(noted) and checksums([path / name for name in noted]) == noted
        return bool(noted["sha256"] == _sha256(path))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        return False


def checksums(paths: Iterable[Path]) -> dict[str, str]:
    """Return the sha256 of files, by name."""
    return {path.name: _sha256(path) for path in paths}


def cannot_save(path: Path, why: str) -> OSError:
    """Say that a checkpoint could not be written."""
    return OSError(f"could not save {path} ({why}); free some space and run the same command again.")


def step_of(path: Path) -> int:
    """Return the step at whose end a checkpoint was saved."""
    return int(path.stem.removeprefix("step-"))


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole, passing over damaged ones with a warning; sweep what a kill left."""
    for orphan in folder.glob(".*.partial"):
        shutil.rmtree(orphan) if orphan.is_dir() else orphan.unlink(missing_ok=True)
    for manifest in folder.glob("step-*.ckpt.sha256"):
        if not manifest.with_suffix("").exists():
            manifest.unlink(missing_ok=True)
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        if is_whole(path):
            return path
        log.warning("%s is damaged (its checksum does not hold); falling back to the checkpoint before it.", path)
    return None


def validates(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Tell whether a validation follows this batch of training."""
    return bool(trainer.enable_validation and (batch_idx + 1) % (trainer.val_check_batch or 1) == 0)


class StepCheckpoints(pl.Callback):
    """Save every `every` steps and when training ends or is asked to stop; keep the newest two."""

    def __init__(self, folder: Path, every: int) -> None:
        """Save into `folder`."""
        self.folder, self.every = folder, every
        self._last = -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at a step border, unless a validation comes first: a run that resumes would leave it out."""
        if self._is_due(trainer) and not validates(trainer, batch_idx):
            # Lightning would log the step behind this: a kill in between would leave a checkpoint without its line
            cast(Any, trainer)._logger_connector.update_train_step_metrics()
            self.save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what waited for the validation of its step."""
        if self._is_due(trainer):
            self.save(trainer)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        return trainer.global_step % self.every == 0 or trainer.should_stop or trainer.global_step >= trainer.max_steps

    def save(self, trainer: pl.Trainer) -> None:
        """Save now and remove what is older than the newest two."""
        if trainer.global_step == self._last:
            return
        trainer.save_checkpoint(self.folder / NAME.format(trainer.global_step))
        self._last = trainer.global_step
        if trainer.is_global_zero:
            for old in sorted(self.folder.glob("step-*.ckpt"))[:-KEPT]:
                DurableCheckpointIO().remove_checkpoint(old)


def _manifest(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(path: Path, sums: Mapping[str, str]) -> None:
    """Write checksums, on the disk for good."""
    path.write_text(json.dumps(sums), encoding="utf-8")
    sync_file(path)


def sync_file(path: Path) -> None:
    """Wait until a file is on the disk for good."""
    _sync(path, os.O_RDWR)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk for good."""
    _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
