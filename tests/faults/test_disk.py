"""A full disk while something is saved, and checkpoints that are damaged later: what was there before is there."""

import errno
import random
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from anymodal.learning.checkpoints import DurableCheckpointIO, newest, step_of
from anymodal.model.folder import ModelFolder

NAME = "step-{:08d}.ckpt"
OFFSETS = 20
ELSEWHERE = Path("/dev/shm")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes; Python ignores the signal, so that writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def other_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let TMPDIR lie on another file system, where there is one."""
    if ELSEWHERE.is_dir() and ELSEWHERE.stat().st_dev != tmp_path.stat().st_dev:
        monkeypatch.setenv("TMPDIR", str(ELSEWHERE))


def checkpoint(step: int) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {f"{i}": torch.full((64, 64), float(step)) for i in range(20)}}


@pytest.mark.usefixtures("other_temporary_folder")
def test_a_checkpoint_on_a_full_disk(tmp_path: Path, tally: Any) -> None:
    io = DurableCheckpointIO()
    io.save_checkpoint(checkpoint(2), tmp_path / NAME.format(2))
    before = content(tmp_path)
    size = (tmp_path / NAME.format(2)).stat().st_size
    for offset in [*(size * i // OFFSETS for i in range(OFFSETS)), size - 1]:
        with tally.fault():
            with full_disk(offset), pytest.raises(OSError, match="could not save .*step-00000004.ckpt .*free some"):
                io.save_checkpoint(checkpoint(4), tmp_path / NAME.format(4))
            assert newest(tmp_path) == tmp_path / NAME.format(2)
            assert content(tmp_path) == before
    with full_disk(size + 64):
        io.save_checkpoint(checkpoint(4), tmp_path / NAME.format(4))
    assert newest(tmp_path) == tmp_path / NAME.format(4)


@pytest.mark.usefixtures("other_temporary_folder")
def test_a_model_folder_on_a_full_disk(toy: Any, tmp_path: Path, tally: Any) -> None:
    old, new = toy.parts(), toy.parts(seed=1)
    old.save(tmp_path / "model")
    before = content(tmp_path)
    sizes = sorted(len(data) for data in before.values())
    offsets = sorted({0, *(size - 1 for size in sizes), *(sizes[-1] * i // OFFSETS for i in range(OFFSETS))})
    assert len(offsets) >= OFFSETS
    for offset in offsets:
        with tally.fault():
            with full_disk(offset), pytest.raises(OSError, match="could not save .*model .*free some space"):
                new.save(tmp_path / "model")
            assert content(tmp_path) == before
    ModelFolder.load(tmp_path / "model")
    with full_disk(sizes[-1]):
        new.save(tmp_path / "model")
    assert content(tmp_path) != before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.usefixtures("tally")
@pytest.mark.parametrize("share", [0.0, 0.9])
def test_a_run_on_a_full_disk_resumes(programs: Any, tmp_path: Path, share: float, whole_run: Path) -> None:
    size = next((whole_run / "checkpoints").glob("*.ckpt")).stat().st_size
    words = ("--run.steps", "6", "--run.validate_every", "0")
    # the first checkpoint fits; from the third step on the disk is full
    ended = programs(tmp_path, *words, after=3, kind="fill", bytes=max(20_000, int(share * size)))
    assert ended.code == 2, ended.log
    assert f"could not save {tmp_path / 'checkpoints' / NAME.format(4)}" in ended.log
    assert "File too large" in ended.log or "unexpected pos" in ended.log or "PytorchStreamWriter" in ended.log
    assert "Traceback" not in ended.log
    kept = newest(tmp_path / "checkpoints")
    assert kept is not None and step_of(kept) == 2
    assert programs(tmp_path, *words).code == 0
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (
        whole_run / "model" / "model.safetensors"
    ).read_bytes()
    assert not [path for path in tmp_path.rglob(".*") if path.suffix in (".partial", ".before")]


@pytest.fixture(scope="module")
def whole_run(programs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    ended = programs(out, "--run.steps", "6", "--run.validate_every", "0", diary=True)
    assert ended.code == 0, ended.log
    return out


def damage(path: Path, choice: random.Random) -> str:
    """Cut a file or flip a bit of it."""
    data = bytearray(path.read_bytes())
    if choice.random() < 0.5:
        place = choice.randrange(len(data))
        path.write_bytes(data[:place])
        return f"cut at {place}"
    bit = choice.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit} flipped"


def test_a_damaged_checkpoint_is_passed_over(
    whole_run: Path, tmp_path: Path, long: bool, tally: Any, caplog: pytest.LogCaptureFixture
) -> None:
    choice = random.Random(0)
    for number in range(100 if long else 20):
        folder = tmp_path / str(number)
        shutil.copytree(whole_run / "checkpoints", folder)
        path = folder / NAME.format(6)
        what = damage(path if number % 5 else path.with_name(f"{path.name}.sha256"), choice)
        caplog.clear()
        with tally.fault(), caplog.at_level("WARNING", logger="anymodal"):
            assert newest(folder) == folder / NAME.format(4), what
            assert caplog.messages == [
                f"{path} is damaged (its checksum does not hold); falling back to the checkpoint before it."
            ]
        shutil.rmtree(folder)


@pytest.mark.usefixtures("tally")
def test_a_run_falls_back_and_says_so(programs: Any, whole_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole_run, out)
    damage(out / "checkpoints" / NAME.format(6), random.Random(1))
    (out / "diary.jsonl").unlink()
    ended = programs(out, "--run.steps", "6", "--run.validate_every", "0", diary=True)
    assert ended.code == 0, ended.log
    assert f"{NAME.format(6)} is damaged" in ended.log
    whole = (whole_run / "diary.jsonl").read_text().splitlines()
    assert (out / "diary.jsonl").read_text().splitlines() == whole[4:]
    assert (out / "model" / "model.safetensors").read_bytes() == (
        whole_run / "model" / "model.safetensors"
    ).read_bytes()


def test_the_disk_is_full_as_the_kernel_says_it(tmp_path: Path) -> None:
    with full_disk(10), (tmp_path / "file").open("wb", buffering=0) as file:
        assert file.write(b"x" * 20) == 10
        with pytest.raises(OSError) as caught:
            file.write(b"x")
    assert caught.value.errno == errno.EFBIG
