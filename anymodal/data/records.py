"""Records of codes: the codes of a whole shard in one file beside it, mapped into memory."""

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from anymodal.data.files import StagedFile

SUFFIX = ".codes.safetensors"
COLUMNS = ("firsts", "ends", "shapes", "names")


def records_path(folder: Path, shard: str, crc32: int, fingerprint: str) -> Path:
    """Name the records of a shard: after its content, so that shards of one name may share the folder.

    >>> records_path(Path("codes"), "data/000003.tar", 0x1234, "d3e4").name
    '000003.00001234.d3e4.codes.safetensors'
    """
    return folder / f"{Path(shard).stem}.{crc32:08x}.{fingerprint}{SUFFIX}"


def stage_records(samples: Iterable[Mapping[str, NDArray[Any]]], about: Mapping[str, Any], target: Path) -> StagedFile:
    """Write the codes of samples, by name, beside their place; return the file, which the caller commits.

    The same codes give the same bytes. `about` says what they are the codes of.

    Raises ValueError when the disk is full.
    """
    arrays: list[NDArray[Any]] = []
    names: list[str] = []
    firsts = [0]
    for codes in samples:
        arrays += codes.values()
        names += codes
        firsts.append(len(arrays))
    known = sorted(set(names))
    number = {name: place for place, name in enumerate(known)}
    flat = np.concatenate([array.ravel() for array in arrays]) if arrays else np.zeros(0, dtype=np.uint16)
    columns = {
        "firsts": np.array(firsts, dtype=np.int64),
        "ends": np.cumsum([array.size for array in arrays], dtype=np.int64),
        "shapes": np.array([[0] * (3 - array.ndim) + [*array.shape] for array in arrays], dtype=np.int64).reshape(
            -1, 3
        ),
        "names": np.array([number[name] for name in names], dtype=np.int64),
    }
    header = {"about": about, "names": known, "crc32": _checksum(flat, columns)}
    staged = StagedFile(target)
    with staged.open() as stream:
        stream.write(save({"codes": flat, **columns}, {"records": json.dumps(header, sort_keys=True)}))
    return staged


def read_about(path: Path) -> Mapping[str, Any]:
    """Return what a file of records says of itself, without its codes.

    Raises ValueError when it is missing or no such file.
    """
    about: Mapping[str, Any] = _header_of(path)["about"]
    return about


class CodeRecords:
    """Hold the codes of a shard's samples; they stay in the file until they are read.

    >>> codes = {"codes.f00d.npy": np.array([[1, 2], [3, 4]], dtype=np.uint16)}
    >>> target = getfixture("tmp_path") / "0.codes.safetensors"
    >>> stage_records([codes, {}], {}, target).commit()
    >>> CodeRecords(target).of(0)["codes.f00d.npy"].tolist()
    [[1, 2], [3, 4]]
    """

    def __init__(self, path: Path) -> None:
        """Open a file and check it whole.

        Raises ValueError when it is missing, broken or changed.
        """
        from anymodal.tokens.tensors import TensorFiles  # here, because it imports torch

        header = _header_of(path)
        tensors = TensorFiles.of_file(path)
        try:
            self.codes: NDArray[Any] = tensors["codes"].numpy()
            columns = {name: tensors[name].numpy() for name in COLUMNS}
            whole = _checksum(self.codes, columns) == header["crc32"]
        except (KeyError, TypeError) as error:
            raise _unreadable(path, error) from error
        if not whole:
            raise _unreadable(path, "its checksum is another")
        self._firsts, ends, shapes, names = (columns[name].tolist() for name in COLUMNS)
        self._pictures = [
            (header["names"][name], start, end, tuple(shape if shape[0] else shape[1:]))
            for name, start, end, shape in zip(names, [0, *ends], ends, shapes, strict=False)
        ]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._firsts) - 1

    def of(self, row: int) -> dict[str, NDArray[Any]]:
        """Return the codes of a sample by name: [rows, columns] or [views, rows, columns]."""
        pictures = self._pictures[self._firsts[row] : self._firsts[row + 1]]
        return {name: self.codes[start:end].reshape(shape) for name, start, end, shape in pictures}


def _checksum(codes: NDArray[Any], columns: Mapping[str, NDArray[Any]]) -> int:
    crc32 = zlib.crc32(np.ascontiguousarray(codes).view(np.uint8).data)
    for name in COLUMNS:
        crc32 = zlib.crc32(columns[name].tobytes(), crc32)
    return crc32


def _header_of(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {})["records"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(header, dict) or not {"about", "names", "crc32"} <= set(header):
        raise _unreadable(path, "it says not what it holds")
    return header


def _unreadable(path: Path, what: object) -> ValueError:
    return ValueError(
        f"records of codes must be whole: {path} is not ({what}); delete it, and `anymodal tokenizers codes "
        "--form records` makes it again"
    )
