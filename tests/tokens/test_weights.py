from pathlib import Path

import pytest
import torch
from torch import nn

from anymodal.tokens.weights import dtype_of, load_weights, num_parameters, read_json, save_weights, write_json


def test_weights_keep_bits_and_types(tmp_path: Path) -> None:
    first = nn.Linear(3, 4).bfloat16()
    save_weights(first.state_dict(), tmp_path)
    second = nn.Linear(3, 4)
    load_weights(second, tmp_path)
    assert second.weight.dtype == torch.bfloat16
    assert torch.equal(second.weight, first.weight)
    assert num_parameters(second) == 16


def test_tied_and_strided_tensors_are_written(tmp_path: Path) -> None:
    shared = torch.randn(4, 6)
    save_weights({"a": shared, "b": shared, "c": shared.T, "d": shared[:, ::2]}, tmp_path)
    holder = nn.Module()
    for name, tensor in (("a", shared), ("b", shared), ("c", shared.T), ("d", shared[:, ::2])):
        holder.register_buffer(name, torch.zeros_like(tensor))
    load_weights(holder, tmp_path)
    assert torch.equal(holder.get_buffer("c"), shared.T)
    assert torch.equal(holder.get_buffer("d"), shared[:, ::2])


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights({"a": torch.zeros(2)}, tmp_path)
    write_json(tmp_path / "config.json", {"a": 1})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights({"a": torch.ones(2)}, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "config.json", {"a": 2})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_json_must_be_an_object(tmp_path: Path) -> None:
    for text, message in (("[1]", "must hold a JSON object, got list"), ("{", "is no JSON"), (None, "is missing")):
        path = tmp_path / f"{message[:4]}.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_json(path)


def test_types_have_names() -> None:
    assert dtype_of("bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match="must be one of float32, .*int8, stored or auto, got 'int4'"):
        dtype_of("int4")
