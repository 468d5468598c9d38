"""Pickles of tensors, as torch.save writes them: looked through before they are read, and read without running code."""

import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_CODE_BYTES = 10_000_000
KINDS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED = frozenset(
    ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")
    + tuple(f"torch {kind}Storage" for kind in KINDS)
)
"""What a pickle of tensors calls. Torch allows more, some of which turns a few bytes into gigabytes."""

WRAPPERS = ("state_dict", "model")
"""Under which names the checkpoint of a trainer keeps the tensors."""


def load_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickle, mapped.

    Raises:
        ValueError: it is broken, hostile, or holds more than tensors.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy or download it again.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no zip file as torch.save writes; load it with its own code and save safetensors.")
    try:
        _check_code(_code_of(path), path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except ValueError:
        raise
    except Exception as error:  # hostile bytes raise nearly anything
        raise ValueError(
            f"{path} holds more than tensors, or is broken ({type(error).__name__}); "
            "load it with its own code and save safetensors."
        ) from error
    tensors = _tensors_in(content, path)
    _check_sizes(tensors, path)
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _code_of(path: Path) -> bytes:
    """Return the pickle proper of an archive that two readers of zip files cannot understand in two ways."""
    with zipfile.ZipFile(path) as archive:
        items = archive.infolist()
        packed = any(item.compress_type != zipfile.ZIP_STORED for item in items)
        if packed or archive.comment or sum(item.file_size for item in items) > path.stat().st_size:
            raise ValueError(f"{path} holds compressed or overlapping members, as no torch.save writes; it is hostile.")
        names = {item.filename.lower() for item in items}
        code = [item for item in items if item.filename.endswith("/data.pkl")]
        if len(names) < len(items) or len({name.partition("/")[0] for name in names}) > 1 or len(code) != 1:
            raise ValueError(f"{path} must hold one data.pkl and every member once, as torch.save writes it.")
        if code[0].file_size > MAX_CODE_BYTES:
            raise ValueError(
                f"{code[0].filename} of {path} has {code[0].file_size} bytes, at most {MAX_CODE_BYTES} are read; "
                "the file is hostile."
            )
        return archive.read(code[0])


def _check_code(code: bytes, path: Path) -> None:
    """Refuse a pickle that names more than tensors are made of; nothing is carried out."""
    try:
        named = {str(argument) for opcode, argument, _ in pickletools.genops(code) if opcode.name == "GLOBAL"}
    except ValueError as error:
        raise ValueError(f"{path} holds no pickle ({error}); copy or download it again.") from error
    if strange := sorted(named - ALLOWED):
        raise ValueError(
            f"{path} holds more than tensors: it calls {', '.join(strange[:5])}, which is not done here; "
            "if you trust who made it, load it with its own code and save safetensors."
        )


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in WRAPPERS:
        inner = [content[key] for key in WRAPPERS if key in content] if isinstance(content, dict) else []
        if inner and isinstance(inner[0], dict):
            content = inner[0]
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dictionary of tensors, got {type(content).__name__}.")
    found = dict(dict.items(content))
    strange = [key for key, value in found.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if strange:
        raise ValueError(
            f"{path} must hold tensors by their names alone, got {strange[0]!r}: "
            f"{type(found[strange[0]]).__name__}; load it with its own code and save safetensors."
        )
    return found


def _check_sizes(tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse what is larger than its bytes: a few of them would become gigabytes when they are copied."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    repeated = [name for name, tensor in tensors.items() if sizes[name] > tensor.untyped_storage().nbytes()]
    if repeated:
        strides = tensors[repeated[0]].stride()
        raise ValueError(f"{repeated[0]} of {path} repeats its bytes (strides {strides}); the file is hostile.")
    if sum(sizes.values()) > 2 * path.stat().st_size:  # tied tensors count twice
        raise ValueError(
            f"the tensors of {path} have {sum(sizes.values())} bytes, the file {path.stat().st_size}: they repeat each "
            "other; the file is hostile."
        )
