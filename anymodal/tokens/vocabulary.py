"""One id space for all modalities: a table code -> id a modality, special ids by role name."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from anymodal.tokens.config import SPECIALS

__all__ = ["SPECIALS", "Vocabulary"]

_MAX_SIZE = 2**24


class Vocabulary:
    """Hold which ids are special, which are codes of a modality, and which are left to text.

    A table need not be contiguous, nor in order: published models map their codes freely. Ids are in [0, size).

    Raises:
        ValueError: an id outside of [0, size), or an id with two meanings.

    >>> import torch
    >>> vocabulary = Vocabulary(size=10, specials={"boi": 0, "eoi": 9}, tables={"image": [7, 3, 5]})
    >>> vocabulary.to_ids(torch.tensor([[0, 1], [2, 0]])).tolist()
    [[7, 3], [5, 7]]
    >>> vocabulary.special("eoi")
    9
    """

    def __init__(self, *, size: int, specials: Mapping[str, int], tables: Mapping[str, Sequence[int]]) -> None:
        if not isinstance(size, int) or not 1 <= size <= _MAX_SIZE:
            raise ValueError(f"the size of a vocabulary must be in [1, {_MAX_SIZE}], not {size!r}")
        meanings: dict[int, str] = {}
        for name, index in specials.items():
            _claim(meanings, index, f"special {name!r}", size)
        for modality, ids in tables.items():
            if not len(ids):
                raise ValueError(f"table {modality!r} of a vocabulary must hold at least one id; leave it out instead")
            for code, index in enumerate(ids):
                _claim(meanings, index, f"code {code} of {modality!r}", size)
        self.size = size
        self.specials: Mapping[str, int] = MappingProxyType({name: int(index) for name, index in specials.items()})
        self._tables = {modality: torch.tensor(list(ids), dtype=torch.long) for modality, ids in tables.items()}
        self._codes = {modality: _inverse(table, size) for modality, table in self._tables.items()}
        self._moved: dict[tuple[str, str, torch.device], Tensor] = {}

    @classmethod
    def build(cls, *, text_size: int, specials: Mapping[str, int], codebook_size: int) -> "Vocabulary":
        """Make the vocabulary of a model made here: the image codes stand right behind the text ids.

        >>> Vocabulary.build(text_size=300, specials={"eos": 2}, codebook_size=64).size
        364
        """
        size = text_size + codebook_size
        return cls(size=size, specials=specials, tables={"image": range(text_size, size)})

    @property
    def modalities(self) -> tuple[str, ...]:
        """Name the modalities that have a table."""
        return tuple(self._tables)

    @property
    def fingerprint(self) -> str:
        """Name this vocabulary by its content: 16 hexadecimal digits."""
        data = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(data.encode()).hexdigest()[:16]

    def special(self, name: str) -> int:
        """Give the id of a role name.

        Raises:
            ValueError: the vocabulary has no such special.
        """
        if name not in self.specials:
            known = ", ".join(self.specials) or "none"
            raise ValueError(f"this vocabulary has no special {name!r}; it has: {known}")
        return self.specials[name]

    def has_special(self, name: str) -> bool:
        """Tell whether a role name has an id."""
        return name in self.specials

    def num_codes(self, modality: str = "image") -> int:
        """Count the codes of a modality."""
        return len(self.table(modality))

    def table(self, modality: str = "image") -> Int[Tensor, " num_codes"]:
        """Give the id of every code of a modality, in the order of the codes.

        Raises:
            ValueError: the vocabulary has no such modality.
        """
        self._require(modality)
        return self._tables[modality]

    def to_ids(self, codes: Int[Tensor, "*shape"], modality: str = "image") -> Int[Tensor, "*shape"]:
        """Turn codes into ids.

        Raises:
            ValueError: a code outside of [0, num_codes).
        """
        self._require(modality)
        table = self._on(codes.device, "ids", modality)
        if codes.numel():
            low, high = (int(bound) for bound in torch.aminmax(codes))
            if low < 0 or high >= len(table):
                wrong = low if low < 0 else high
                raise ValueError(
                    f"a code of {modality!r} must be in [0, {len(table)}), not {wrong}; "
                    "were these codes made by another tokenizer?"
                )
        return table[codes.long()]

    def to_codes(self, ids: Int[Tensor, "*shape"], modality: str = "image") -> Int[Tensor, "*shape"]:
        """Turn ids into codes.

        Raises:
            ValueError: an id that is no code of the modality.
        """
        codes = self._lookup(ids, modality)
        refused = codes < 0
        if bool(refused.any()):
            wrong = int(ids[refused].flatten()[0])
            raise ValueError(f"id {wrong} is no code of {modality!r}; select the codes with is_code first")
        return codes

    def is_code(self, ids: Int[Tensor, "*shape"], modality: str = "image") -> Bool[Tensor, "*shape"]:
        """Tell which ids are codes of a modality; an id outside of [0, size) is none."""
        return self._lookup(ids, modality) >= 0

    def to_dict(self) -> dict[str, Any]:
        """Give plain data for a file: tables as runs [first id, count]."""
        tables = {modality: _runs(table.tolist()) for modality, table in self._tables.items()}
        return {"size": self.size, "specials": dict(self.specials), "tables": tables}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Vocabulary":
        """Make the vocabulary that `to_dict` described.

        Raises:
            ValueError: a key that is missing or unknown, or a run that is not [first id, count].
        """
        if set(data) != {"size", "specials", "tables"}:
            raise ValueError(f"a vocabulary has the keys size, specials and tables, not {sorted(data)}")
        for name in ("specials", "tables"):
            if not isinstance(data[name], Mapping):
                raise ValueError(f"{name} of a vocabulary must be a mapping, not {data[name]!r}")
        tables: dict[str, list[int]] = {}
        for modality, runs in data["tables"].items():
            wrong = [run for run in runs if not _is_run(run)] if isinstance(runs, list) else [runs]
            if wrong:
                raise ValueError(f"table {modality!r} of a vocabulary holds runs [first id, count], not {wrong[0]!r}")
            if sum(count for _, count in runs) > _MAX_SIZE:
                raise ValueError(f"table {modality!r} of a vocabulary must hold at most {_MAX_SIZE} ids")
            tables[modality] = [start + step for start, count in runs for step in range(count)]
        return cls(size=data["size"], specials=data["specials"], tables=tables)

    def __reduce__(self) -> tuple[Any, tuple[dict[str, Any]]]:
        """Copy and pickle by content: workers that prepare batches take it along."""
        return type(self).from_dict, (self.to_dict(),)

    def __repr__(self) -> str:
        """Show sizes, not tables."""
        counts = ", ".join(f"{modality}={len(table)}" for modality, table in self._tables.items())
        return f"Vocabulary(size={self.size}, specials={len(self.specials)}, {counts})"

    def _require(self, modality: str) -> None:
        if modality not in self._tables:
            known = ", ".join(self._tables) or "none"
            raise ValueError(f"this vocabulary has no modality {modality!r}; it has: {known}")

    def _lookup(self, ids: Tensor, modality: str) -> Tensor:
        self._require(modality)
        inside = (ids >= 0) & (ids < self.size)
        codes = self._on(ids.device, "codes", modality)[torch.where(inside, ids, 0).long()]
        return torch.where(inside, codes, -1)

    def _on(self, device: torch.device, which: str, modality: str) -> Tensor:
        source = (self._tables if which == "ids" else self._codes)[modality]
        if source.device == device:
            return source
        key = (which, modality, device)
        if key not in self._moved:
            self._moved[key] = source.to(device)
        return self._moved[key]


def _is_run(run: Any) -> bool:
    """Tell a run from what a broken file may hold."""
    return isinstance(run, list) and [type(number) for number in run] == [int, int] and run[1] >= 1


def _claim(meanings: dict[int, str], index: int, meaning: str, size: int) -> None:
    if not isinstance(index, int):
        raise ValueError(f"{meaning} must have a whole number as its id, not {index!r}")
    if not 0 <= index < size:
        raise ValueError(f"{meaning} must have an id in [0, {size}), not {index}")
    if index in meanings:
        raise ValueError(f"an id has one meaning, but id {index} is both {meanings[index]} and {meaning}")
    meanings[index] = meaning


def _inverse(table: Tensor, size: int) -> Tensor:
    codes = torch.full((size,), -1, dtype=torch.long)
    codes[table] = torch.arange(len(table))
    return codes


def _runs(ids: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for index in ids:
        if runs and index == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([index, 1])
    return runs
