"""Tensors in files: mapped, read one by one, and nothing that a hostile file could run."""

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

MAX_HEADER_BYTES = 10_000_000
MAX_TENSORS = 100_000
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


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
        """Open `STEM.safetensors`, or the shards of `STEM.safetensors.index.json`, or a pickle of the folder if allowed.

        Raises:
            ValueError: there are none, or a file is broken, hostile, or a pickle that is not allowed.
        """
        whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if whole.is_file():
            return cls.of_file(whole)
        if index.is_file():
            return cls._of_index(index, allow_pickle=False)
        pickles = sorted(path for pattern in PICKLES for path in folder.glob(pattern))
        if not pickles:
            raise ValueError(f"{whole} is missing; a model folder needs it.")
        if not allow_pickle:
            raise ValueError(
                f"{whole} is missing; {pickles[0].name} is a pickle, which can run code, and is not read: convert it to "
                "safetensors, or, if you trust who made it, say allow_pickle=True (`--allow_pickle true`)."
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
            tensors = _unpickled(path)
        else:
            raise ValueError(
                f"{path} is a pickle, which can run code, and is not read: convert it to safetensors, or, if you trust "
                "who made it, say allow_pickle=True (`--allow_pickle true`)."
            )
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
        return cls(places)


class _Safetensors(Mapping[str, Tensor]):
    def __init__(self, path: Path) -> None:
        _check_header(path)
        self.path = path
        try:
            self._file: Any = safe_open(path, framework="pt").__enter__()
            self._names = list(self._file.keys())
        except SafetensorError as error:
            raise ValueError(f"{path} is no readable safetensors file ({error}); copy or download it again.") from error

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER_BYTES:
            raise ValueError(
                f"the header of {path} claims {size} bytes, at most {MAX_HEADER_BYTES} are read; "
                "the file is broken or hostile."
            )
        header = file.read(size)
    if header.count(b'"dtype"') > MAX_TENSORS:
        raise ValueError(f"{path} lists over {MAX_TENSORS} tensors; the file is broken or hostile.")


def _index_of(path: Path) -> dict[str, str]:
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise ValueError(f"{path} is larger than {MAX_HEADER_BYTES} bytes; the file is broken or hostile.")
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no index of tensors ({error!r}); copy or download it again.") from error
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise ValueError(f"the weight_map of {path} must name a file for every tensor; copy or download it again.")
    return listed


def _beside(index: Path, name: str) -> Path:
    """Return the file that an index names: beside it, and no way out of the folder.

    A link may lead within the folder, or into the `blobs` of a hub's cache that the folder is a snapshot of.
    """
    path = index.parent / name
    if Path(name).name != name or name.startswith("."):
        raise ValueError(f"{index} names {name!r}, which is not a file beside it; the folder is broken or hostile.")
    if not path.is_file():
        raise ValueError(f"{path} is missing, but {index.name} needs it; copy or download the folder again.")
    home, real = index.parent.resolve(), path.resolve()
    if real.parent != home and real.parent != home.parent.parent / "blobs":
        raise ValueError(f"{path} is a link that leads out of its folder to {real}; copy the file there instead.")
    return path


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Read a pickle of tensors with torch's restricted unpickler, mapped."""
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no zip file as torch.save writes; load it with its own code and save safetensors.")
    with zipfile.ZipFile(path) as archive:
        packed = [item.filename for item in archive.infolist() if item.compress_type != zipfile.ZIP_STORED]
        stored = sum(item.file_size for item in archive.infolist())
    if packed or stored > path.stat().st_size:
        raise ValueError(f"{path} holds compressed or overlapping members, as no torch.save writes; it is hostile.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises nearly anything on hostile bytes
        raise ValueError(
            f"{path} holds more than tensors, or is broken ({str(error).splitlines()[0]}); "
            "load it with its own code and save safetensors."
        ) from error
    return {name: _plain(name, value, path) for name, value in _tensors_in(content, path).items()}


def _tensors_in(content: object, path: Path) -> dict[str, Tensor]:
    while isinstance(content, dict) and (inner := next((k for k in ("state_dict", "model") if k in content), None)):
        content = content[inner]
    if not isinstance(content, dict) or len(content) > MAX_TENSORS:
        raise ValueError(
            f"{path} must hold a dictionary of at most {MAX_TENSORS} tensors, got {type(content).__name__}."
        )
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _plain(name: str, tensor: Tensor, path: Path) -> Tensor:
    """Refuse tensors that are larger than what stores them: a few bytes that become gigabytes when copied."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not dense or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{name} of {path} is sparse or repeats its bytes (strides {tensor.stride()}); it is hostile.")
    return tensor.detach()
