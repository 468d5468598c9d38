import json
import os
from pathlib import Path

import pytest

from anymodal.tokens import files
from anymodal.tokens.files import check_within, read_bytes, read_object


def test_small_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": ["é", 1.5]}', encoding="utf-8")
    assert read_object(tmp_path / "a.json") == {"a": ["é", 1.5]}
    assert read_bytes(tmp_path / "a.json", 18) == '{"a": ["é", 1.5]}'.encode()
    (tmp_path / "link.json").symlink_to("a.json")
    assert read_object(tmp_path / "link.json") == {"a": ["é", 1.5]}


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (("pipe", "no regular file"), (".", "no regular file"), ("none", "missing"), ("loop", "miss")):
        with pytest.raises(ValueError, match=f"is {message}"):
            read_bytes(tmp_path / name, 10)


def test_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": [[]] * 10}))
    with pytest.raises(ValueError, match=r"a.json has 47 bytes, at most 46 are read"):
        read_object(path, 46)
    monkeypatch.setattr(files, "MAX_JSON_VALUES", 20)
    with pytest.raises(ValueError, match="holds over 20 values"):
        read_object(path)
    monkeypatch.setattr(files, "MAX_JSON_VALUES", 21)  # nine commas, eleven lists, one object
    assert len(read_object(path)["a"]) == 10


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", "[" * 10**6, "9" * 5000, "\ufeff{}"])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"a.json is no JSON \("):
        read_object(tmp_path / "a.json")


def test_json_must_be_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        read_object(tmp_path / "a.json")


def test_links_stay_within_the_folder(tmp_path: Path) -> None:
    home, outside = tmp_path / "model", tmp_path / "outside"
    home.mkdir()
    for path in (outside, home / "a"):
        path.touch()
    (home / "in").symlink_to("a")
    (home / "out").symlink_to(outside)
    (home / "twice").symlink_to("out")
    for name in ("a", "in"):
        check_within(home / name)
    (tmp_path / "alias").symlink_to(home)  # the user's own link to the folder
    check_within(tmp_path / "alias" / "a")
    for name in ("out", "twice"):
        with pytest.raises(ValueError, match=rf"{name} is a link that leads out of its folder to .*outside"):
            check_within(home / name)


def test_links_lead_into_the_blobs_of_a_hub(tmp_path: Path) -> None:
    hub = tmp_path / "models--a--b"
    (hub / "snapshots" / "01ab" / "inner").mkdir(parents=True)
    (hub / "blobs").mkdir()
    (hub / "blobs" / "ff").touch()
    (hub / "secret").touch()
    for inside in ("a", "inner/a"):
        path = hub / "snapshots" / "01ab" / inside
        path.symlink_to(hub / "blobs" / "ff")
        check_within(path)
    (hub / "snapshots" / "01ab" / "b").symlink_to(hub / "secret")
    with pytest.raises(ValueError, match="leads out of its folder"):
        check_within(hub / "snapshots" / "01ab" / "b")
