"""Weights in a folder: safetensors in and out, with clear errors."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from anymodal.tokens.files import read_object
from anymodal.tokens.tensors import TensorFiles, misfit

WEIGHTS = "model.safetensors"


def save_weights(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write `state` as `model.safetensors`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{WEIGHTS}.{os.getpid()}.partial"
    try:
        save_file({name: _apart(tensor) for name, tensor in state.items()}, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(folder / WEIGHTS)
    except SafetensorError as error:
        raise OSError(f"could not write {folder / WEIGHTS}: {error}; free some space and save again.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _apart(tensor: Tensor) -> Tensor:
    """Copy a tensor, as safetensors refuses tensors that share memory (tied embeddings)."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def load_weights(module: nn.Module, folder: Path) -> None:
    """Fill `module` from `model.safetensors`, keeping the stored floating point type.

    Raises:
        ValueError: the file is missing or broken, or a tensor is missing, unknown or of another shape; all are named.
    """
    found = TensorFiles.of_folder(folder)
    expected = module.state_dict()
    _check_tensors(folder / WEIGHTS, expected, found)
    module.load_state_dict({name: found[name] for name in expected}, assign=True)


def _check_tensors(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    missing = sorted(set(expected) - set(found))
    unknown = sorted(set(found) - set(expected))
    both = sorted(set(expected) & set(found))
    others = [f"{name}: {wrong}" for name in both if (wrong := misfit(expected[name], found[name]))]
    problems = [f"missing tensors {missing[:5]}"] * bool(missing) + [f"unknown tensors {unknown[:5]}"] * bool(unknown)
    problems += [f"other shapes or types ({'; '.join(others[:5])})"] * bool(others)
    if problems:
        raise ValueError(
            f"{path} does not fit its config.json: {', '.join(problems)}; use the files of one model together."
        )


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        ValueError: the file is missing, too large, or holds no JSON object.
    """
    return read_object(path)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(data, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def num_parameters(module: nn.Module) -> int:
    """Count the trainable numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def dtype_of(name: str) -> torch.dtype:
    """Return the torch type of "float32", "bfloat16", "float16" or "float64".

    Raises:
        ValueError: any other name.
    """
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
    if name not in types:
        raise ValueError(
            f"dtype must be one of {', '.join(types)}, or for sampling int8, stored or auto, got {name!r}."
        )
    return types[name]
