"""Read the entries of files that others distribute; what is broken is named by file and line."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST_FIELD = 2**31 - 1  # tables carry pictures as text


@dataclass(frozen=True)
class Entry:
    """Hold an entry of a file and where it stands.

    >>> Entry({"text": "Is there a dog?"}, "pope.json, line 1").text("text")
    'Is there a dog?'
    """

    row: Mapping[str, Any]
    where: str

    def text(self, name: str) -> str:
        """Return a field as text.

        Raises:
            ValueError: the entry has no such field, or it is empty.
        """
        value = self.row.get(name)
        if value is None or str(value) == "":
            raise ValueError(f"{self.where} must have a field {name!r}, got {sorted(self.row)}; fetch the file again.")
        return str(value)


def find_file(data: Path, patterns: Sequence[str]) -> Path:
    """Return `data` itself where it is a file, else the one file below it that fits the first pattern which any fits.

    Raises:
        ValueError: no file fits, or several do.
    """
    if data.is_file():
        return data
    for pattern in patterns:
        found = sorted(path for path in data.rglob(pattern) if path.is_file())
        if len(found) > 1:
            raise ValueError(f"{data} must hold one file {pattern}, got {len(found)}; name one: {found[0]}")
        if found:
            return found[0]
    raise ValueError(f"there must be a file {' or '.join(patterns)} in {data}, got none; fetch it as its authors tell.")


def read_lines(path: Path) -> Iterator[Entry]:
    """Yield the objects of a file of JSON lines; empty lines are skipped.

    Raises:
        ValueError: a line is no JSON object; the message names it.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if line.strip():
                yield Entry(_object(_parse(line, where), where), where)


def read_objects(path: Path) -> Iterator[tuple[str, Entry]]:
    """Yield the objects of a JSON list or of a JSON object of objects, each with its number from 0, or its key.

    Raises:
        ValueError: the file is no JSON, or holds something else.
    """
    data = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(data, dict | list):
        raise ValueError(f"{path} must hold a JSON list or object, got {type(data).__name__}; fetch it again.")
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        where = f"{path}, entry {key}"
        yield str(key), Entry(_object(value, where), where)


def read_table(path: Path) -> list[Entry]:
    """Return the rows of a table with tabs and a head, empty cells left out.

    Raises:
        ValueError: a row has more cells than the head, or the file is no text.
    """
    longest = csv.field_size_limit(LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            return [_row(row, f"{path}, line {rows.line_num}") for row in rows]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a table with tabs, in UTF-8: {error}; fetch it again.") from error
    finally:
        csv.field_size_limit(longest)


def spaced(count: int, limit: int | None) -> list[int]:
    """Return `limit` numbers below `count`, evenly spread, or all of them.

    Raises:
        ValueError: the limit is below 1.

    >>> spaced(6, 2), spaced(2, None)
    ([0, 3], [0, 1])
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}; leave it out to take all.")
    kept = count if limit is None else min(limit, count)
    return [number * count // kept for number in range(kept)]


def _row(row: dict[Any, Any], where: str) -> Entry:
    if None in row:
        raise ValueError(f"{where} must have as many cells as the head, got {len(row[None])} more; fetch it again.")
    return Entry({name: cell for name, cell in row.items() if cell}, where)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} must be JSON: {error}; fetch the file again.") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a JSON object, got {type(value).__name__}; fetch the file again.")
    return value
