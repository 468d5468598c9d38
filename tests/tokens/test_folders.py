"""A folder is replaced whole or stays, whatever ended the process that wrote it."""

from pathlib import Path

import pytest

from anymodal.tokens.folders import staged_folder


def write(target: Path, content: str) -> None:
    with staged_folder(target) as folder:
        (folder / "config.json").write_text(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_takes_its_place(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    write(target, "1")
    write(target, "2")
    assert (target / "config.json").read_text() == "2"
    assert names(target.parent) == ["model"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    write(tmp_path / "model", "1")
    rename = Path.rename

    def fail(self: Path, to: Path) -> Path:
        if self.suffix == ".partial":
            raise error
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(type(error)):
        write(tmp_path / "model", "2")
    assert (tmp_path / "model" / "config.json").read_text() == "1"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("moved", [True, False])
def test_what_a_kill_left_is_cleared_up(tmp_path: Path, moved: bool) -> None:
    write(tmp_path / "model", "1")
    write(tmp_path / ".model.7.partial", "half")
    (tmp_path / "model").rename(tmp_path / ".model.7.before")
    if not moved:
        write(tmp_path / "model", "2")
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "model"):
        raise RuntimeError("the next save fails, too")
    assert (tmp_path / "model" / "config.json").read_text() == ("1" if moved else "2")
    assert names(tmp_path) == ["model"]


def test_a_folder_of_other_things_is_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="is no model folder and is not empty; save into a new folder"):
        write(tmp_path, "1")
    assert names(tmp_path) == ["thesis.txt"]
