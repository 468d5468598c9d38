"""What hostile files do is tried in tests/faults/test_import.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anymodal.tokens import tensors
from anymodal.tokens.tensors import TensorFiles, misfit

STATE = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.ones(4, dtype=torch.bfloat16),
    "c": torch.zeros((), dtype=torch.int64),
}


def equal(found: TensorFiles, expected: dict[str, Tensor]) -> bool:
    same = all(found[name].dtype == each.dtype and torch.equal(found[name], each) for name, each in expected.items())
    return same and set(found) == set(expected) and len(found) == len(expected)


def write_shards(folder: Path, save: Any, stem: str, ending: str) -> None:
    """Write `STATE` in two files, and their index."""
    placed = {"a": f"{stem}-1.{ending}", "b": f"{stem}-2.{ending}", "c": f"{stem}-1.{ending}"}
    for file in set(placed.values()):
        save({name: STATE[name] for name in STATE if placed[name] == file}, folder / file)
    index = {"metadata": {"total_size": 40}, "weight_map": placed}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


def test_one_file(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = TensorFiles.of_folder(tmp_path)
    assert equal(found, STATE)
    assert "d" not in found
    with pytest.raises(KeyError):
        found["d"]
    save_file({"a": STATE["a"]}, tmp_path / "other.safetensors")
    assert equal(TensorFiles.of_folder(tmp_path, "other"), {"a": STATE["a"]})
    assert equal(TensorFiles.of_file(tmp_path / "other.safetensors"), {"a": STATE["a"]})


def test_tensors_are_mapped(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    found = TensorFiles.of_folder(tmp_path)
    first, second = found["a"], found["a"]
    assert first.data_ptr() == second.data_ptr(), "both are views of one file"
    first.add_(1)
    assert torch.equal(TensorFiles.of_folder(tmp_path)["a"], STATE["a"]), "the file stays as it is"


def test_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, save_file, "model", "safetensors")
    assert equal(TensorFiles.of_folder(tmp_path), STATE)


def test_the_index_decides_and_forgets_nothing(tmp_path: Path) -> None:
    write_shards(tmp_path, save_file, "model", "safetensors")
    save_file({"b": STATE["b"], "a": torch.zeros(1), "more": torch.zeros(2)}, tmp_path / "model-2.safetensors")
    assert equal(TensorFiles.of_folder(tmp_path), {**STATE, "more": torch.zeros(2)})


def test_pickles_are_read_only_when_allowed(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is a pickle, which can run code, and is not read"):
        TensorFiles.of_folder(tmp_path)
    with pytest.raises(ValueError, match=r"pytorch_model.bin is a pickle, .* say allow_pickle=True"):
        TensorFiles.of_file(tmp_path / "pytorch_model.bin")
    assert equal(TensorFiles.of_folder(tmp_path, allow_pickle=True), STATE)
    save_file({"a": STATE["a"]}, tmp_path / "model.safetensors")
    assert equal(TensorFiles.of_folder(tmp_path, allow_pickle=True), {"a": STATE["a"]}), "safetensors go first"


def test_shards_of_pickles(tmp_path: Path) -> None:
    write_shards(tmp_path, torch.save, "pytorch_model", "bin")
    with pytest.raises(ValueError, match="is a pickle"):
        TensorFiles.of_folder(tmp_path)
    assert equal(TensorFiles.of_folder(tmp_path, allow_pickle=True), STATE)
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(ValueError, match="holds 2 pickles and no index"):
        TensorFiles.of_folder(tmp_path, allow_pickle=True)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "none.safetensors"}, r"none.safetensors is missing, but model.safetensors.index.json needs it"),
        ({"d": "one.safetensors"}, "places d in one.safetensors, which lacks it"),
        ({"a": "../one.safetensors"}, r"names '../one.safetensors', which is not a file beside it"),
        ({"a": ".one.safetensors"}, "which is not a file beside it"),
        ({"a": "one.bin"}, "one.bin is a pickle"),
        ({"a": 1}, "must name a file for every tensor"),
        (["a"], "must name a file for every tensor"),
        (None, "must name a file for every tensor"),
    ],
)
def test_a_broken_index_is_named(tmp_path: Path, weight_map: Any, message: str) -> None:
    save_file(STATE, tmp_path / "one.safetensors")
    torch.save(STATE, tmp_path / "one.bin")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=message):
        TensorFiles.of_folder(tmp_path, allow_pickle=True)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.safetensors is missing; a model folder needs it"):
        TensorFiles.of_folder(tmp_path, allow_pickle=True)
    with pytest.raises(ValueError, match=r"a.safetensors is missing, or no regular file"):
        TensorFiles.of_file(tmp_path / "a.safetensors")


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    torch.save(STATE, tmp_path / "model.bin")
    monkeypatch.setattr(tensors, "MAX_TENSORS", 2)
    for name in ("model.safetensors", "model.bin"):
        with pytest.raises(ValueError, match="holds over 2 tensors"):
            TensorFiles.of_file(tmp_path / name, allow_pickle=True)
    monkeypatch.setattr(tensors, "MAX_HEADER_BYTES", 100)
    with pytest.raises(ValueError, match=r"the header of .* claims \d+ bytes, at most 100 are read"):
        TensorFiles.of_folder(tmp_path)


def test_a_header_that_says_a_thing_twice_is_refused(tmp_path: Path) -> None:
    entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f"{{{entry},{entry}}}".encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match="lists 'a' twice"):
        TensorFiles.of_folder(tmp_path)


@pytest.mark.parametrize(
    ("expected", "found", "wrong"),
    [
        (torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), None),
        (torch.zeros(2, device="meta"), torch.zeros(2), None),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), None),
        (torch.zeros(2), torch.zeros(1, 2), "expected [2], got [1, 2]"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), "expected a floating point type, got torch.int64"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.complex64), "expected a floating point type, got torch.complex64"),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(2), "expected torch.int64, got torch.float32"),
    ],
)
def test_misfits_are_named(expected: Tensor, found: Tensor, wrong: str | None) -> None:
    assert misfit(expected, found) == wrong
