"""What hostile pickles do is tried in tests/faults/test_import_pickles.py."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anymodal.tokens.pickles import load_pickle

KINDS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("dtype", KINDS)
def test_tensors_keep_bits_types_and_strides(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = torch.arange(24).view(4, 6).to(dtype)
    content = {"a": whole, "b": whole.T, "c": whole[1:3, ::2], "d": torch.zeros(0, dtype=dtype)}
    found = load_pickle(saved(tmp_path / "a.bin", content))
    assert found.keys() == content.keys()
    for name, tensor in content.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)


def test_modules_and_checkpoints_are_read(tmp_path: Path) -> None:
    state = nn.Linear(2, 3).state_dict()  # an ordered dictionary with attributes
    held = {name: nn.Parameter(tensor) for name, tensor in state.items()}
    for content in (state, held, {"state_dict": state, "epoch": 3}, {"model": state}, {"state_dict": {"model": state}}):
        found = load_pickle(saved(tmp_path / "a.ckpt", content))
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)
        assert not any(tensor.requires_grad for tensor in found.values())


def test_a_tensor_may_be_called_like_a_checkpoint(tmp_path: Path) -> None:
    assert load_pickle(saved(tmp_path / "a.bin", {"model": torch.ones(2)}))["model"].sum() == 2


def test_tied_tensors_are_read(tmp_path: Path) -> None:
    shared = torch.randn(100, 100)
    found = load_pickle(saved(tmp_path / "a.bin", {"a": shared, "b": shared}))
    assert found["a"].data_ptr() == found["b"].data_ptr()


def test_tensors_are_mapped(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.bin", {"a": torch.zeros(1000)})
    tensor = load_pickle(path)["a"]
    tensor.add_(1)  # ours alone
    assert load_pickle(path)["a"].sum() == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "must hold a dictionary of tensors, got list"),
        ({"a": torch.zeros(1), "b": 1}, r"must hold tensors by their names alone, got 'b': int"),
        ({1: torch.zeros(1)}, "must hold tensors by their names alone, got 1: Tensor"),
        (OrderedDict(a=Path("b")), "holds more than tensors: it calls pathlib"),
        ({"a": torch.zeros(1).expand(9)}, r"a of .* repeats its bytes \(strides \(0,\)\)"),
        ({"a": torch.zeros(9).to_sparse()}, "it calls torch Size, torch._utils _rebuild_sparse_tensor"),
    ],
)
def test_other_contents_are_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_pickle(saved(tmp_path / "a.bin", content))


def test_other_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"PK")
    with pytest.raises(ValueError, match="is no zip file as torch.save writes"):
        load_pickle(tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"b.bin is missing"):
        load_pickle(tmp_path / "b.bin")
