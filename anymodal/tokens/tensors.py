"""Tensors in files: mapped, read one by one, and nothing that a hostile file could run."""

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anymodal.tokens.files import check_within, read_object
from anymodal.tokens.pickles import load_pickle

MAX_HEADER_BYTES = 10_000_000
MAX_TENSORS = 100_000
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What weights may be stored in; narrower types need scales beside them."""


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of one or more files by name; a tensor is a view of its mapped file until something changes it.

    >>> TensorFiles({}).get("weight") is None
    True
    """

    def __init__(self, places: Mapping[str, "Mapping[str, Tensor]"]) -> None:
        """Take the file of every tensor."""
        self._places = dict(places)

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor as stored."""
        return self._places[name][name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._places)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._places)

    @classmethod
    def of_folder(cls, folder: Path, stem: str = "model", *, allow_pickle: bool = False) -> "TensorFiles":
        """Open `STEM.safetensors`, or the shards of its index, or a pickle of the folder if allowed.

        Raises:
            ValueError: there are none, or a file is broken, hostile, or a pickle that is not allowed.
        """
        whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if whole.is_file():
            return cls.of_file(whole)
        if index.is_file():
            return cls._of_index(index, allow_pickle=False)
        pickles = sorted(path for pattern in PICKLES for path in folder.glob(pattern) if path.is_file())
        if not pickles:
            raise ValueError(f"{whole} is missing; a model folder needs it.")
        if not allow_pickle:
            raise ValueError(
                f"{whole} is missing; {pickles[0].name} is a pickle, which can run code, and is not read: convert it "
                "to safetensors, or, if you trust who made it, say allow_pickle=True (`--allow_pickle true`)."
            )
        listing = folder / f"{pickles[0].name.partition('-')[0]}.bin.index.json"
        if listing.is_file():
            return cls._of_index(listing, allow_pickle=True)
        if len(pickles) > 1:
            raise ValueError(f"{folder} holds {len(pickles)} pickles and no index that says which belong together.")
        return cls.of_file(pickles[0], allow_pickle=True)

    @classmethod
    def of_file(cls, path: Path, *, allow_pickle: bool = False) -> "TensorFiles":
        """Open one file.

        Raises:
            ValueError: it is broken, hostile, or a pickle that is not allowed.
        """
        tensors: Mapping[str, Tensor]
        if path.suffix == ".safetensors":
            tensors = _Safetensors(path)
        elif allow_pickle:
            tensors = load_pickle(path)
        else:
            raise ValueError(
                f"{path} is a pickle, which can run code, and is not read: convert it to safetensors, or, if you trust "
                "who made it, say allow_pickle=True (`--allow_pickle true`)."
            )
        if len(tensors) > MAX_TENSORS:
            raise ValueError(f"{path} holds over {MAX_TENSORS} tensors; the file is broken or hostile.")
        return cls({name: tensors for name in tensors})

    @classmethod
    def _of_index(cls, index: Path, *, allow_pickle: bool) -> "TensorFiles":
        listed = _index_of(index)
        files = {name: cls.of_file(_beside(index, name), allow_pickle=allow_pickle) for name in set(listed.values())}
        places: dict[str, Mapping[str, Tensor]] = {}
        for name, file in listed.items():
            if name not in files[file]:
                raise ValueError(f"{index} places {name} in {file}, which lacks it; copy or download the folder again.")
            places[name] = files[file]
        for tensors in files.values():  # what the index forgot is there all the same, and no reader may overlook it
            places |= {name: tensors for name in tensors if name not in places}
        return cls(places)


class _Safetensors(Mapping[str, Tensor]):
    def __init__(self, path: Path) -> None:
        self.path = path
        header = _header_of(path)
        try:
            self._file = cast(Any, safe_open(path, framework="pt"))
            self._names = dict.fromkeys(self._file.keys())
        except SafetensorError as error:
            raise ValueError(f"{path} is no readable safetensors file ({error}); copy or download it again.") from error
        json.loads(header, object_pairs_hook=lambda pairs: _distinct(pairs, path))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{name} of {self.path} cannot be read ({error}); save it in another type.") from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _header_of(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path} is missing, or no regular file; copy or download it again.")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER_BYTES:
            raise ValueError(
                f"the header of {path} claims {size} bytes, at most {MAX_HEADER_BYTES} are read; "
                "the file is broken or hostile."
            )
        return file.read(size)


def _distinct(pairs: list[tuple[str, Any]], path: Path) -> None:
    """Refuse a header that says two things of one tensor: readers differ in which of them holds."""
    if len({name for name, _ in pairs}) < len(pairs):
        twice = sorted(name for name, _ in pairs)
        name = next(each for each, following in pairwise(twice) if each == following)
        raise ValueError(f"{path} lists {name!r} twice; the file is broken or hostile.")


def _index_of(path: Path) -> dict[str, str]:
    listed = read_object(path, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise ValueError(f"the weight_map of {path} must name a file for every tensor; copy or download it again.")
    if len(listed) > MAX_TENSORS:
        raise ValueError(f"{path} lists over {MAX_TENSORS} tensors; the file is broken or hostile.")
    return listed


def _beside(index: Path, name: str) -> Path:
    """Return the file that an index names: beside it, and no way out of the folder."""
    path = index.parent / name
    if Path(name).name != name or name.startswith(".") or not name.isprintable():
        raise ValueError(f"{index} names {name!r}, which is not a file beside it; the folder is broken or hostile.")
    if not path.is_file():
        raise ValueError(f"{path} is missing, but {index.name} needs it; copy or download the folder again.")
    check_within(path)
    return path


def misfit(expected: Tensor, found: Tensor) -> str | None:
    """Say why a stored tensor cannot stand for `expected`; None where it can.

    >>> misfit(torch.zeros(2), torch.zeros(3))
    'expected [2], got [3]'
    """
    if found.shape != expected.shape:
        return f"expected {list(expected.shape)}, got {list(found.shape)}"
    if found.dtype not in FLOATS if expected.is_floating_point() else found.dtype != expected.dtype:
        wanted = "a floating point type" if expected.is_floating_point() else str(expected.dtype)
        return f"expected {wanted}, got {found.dtype}"
    return None
