"""Read samples from what people have: a folder of pictures and captions, or a table of paths and captions or turns."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from anymodal.data.checks import IMAGE_KEYS, SetAside, check_members, check_picture
from anymodal.data.shards import Sample

WEBP_QUALITY = 95
FOREIGN = ("avif", "bmp", "gif", "heic", "jfif", "jp2", "tif", "tiff")  # pictures that nothing here reads
RECORD_FIELDS = ("captions", "questions", "truth")  # columns of a table of JSON lines that go into a sample as they are


def folder_samples(folder: Path) -> Iterator[Sample]:
    """Yield a sample for each name in a folder and those below: picture, caption (.txt) and record (.json) as bytes.

    Raises ValueError for a folder that is missing or holds nothing of these, for two pictures of one name, and for
    pictures of other kinds.
    """
    if not folder.is_dir():
        came = "is a file" if folder.exists() else "does not"
        raise ValueError(f"a folder of pictures must exist, {folder} {came}; look at the path")
    groups: dict[str, dict[str, Path]] = {}
    foreign: list[Path] = []
    for path in sorted(folder.rglob("*")):
        extension = path.suffix[1:].lower()
        if extension not in (*IMAGE_KEYS, *FOREIGN, "txt", "json") or path.name.startswith(".") or not path.is_file():
            continue
        if extension in FOREIGN:
            foreign.append(path)
            continue
        key = key_of(path.relative_to(folder).with_suffix("").as_posix())
        members = groups.setdefault(key, {})
        same = next((name for name in members if name == extension or {name, extension} <= set(IMAGE_KEYS)), None)
        if same:
            raise ValueError(f"pictures and captions must have names of their own, got {members[same]} and {path}")
        members[extension] = path
    if foreign:
        kinds = ", ".join(IMAGE_KEYS)
        raise ValueError(f"pictures must be {kinds}, {len(foreign)} are not: {foreign[0]}; convert or remove them")
    if not groups:
        raise ValueError(f"a folder of pictures must hold {', '.join(IMAGE_KEYS)} or txt files, {folder} holds none")
    for key, members in groups.items():
        yield Sample(key, {extension: path.read_bytes() for extension, path in members.items()})


def table_samples(table: Path, *, picture_column: str = "image", caption_column: str = "caption") -> Iterator[Sample]:
    """Yield a sample for each row of a .csv, .tsv or .jsonl table; paths are taken from the table's folder.

    A row of JSON lines may hold "turns" in the form of a shard's json, with paths for "look" and "draw", and
    "captions", "questions" and "truth". An empty column name says that the table has no such column.

    Raises ValueError for a table or a picture that is missing, a column that is not there and a broken line.
    """
    if not table.is_file():
        raise ValueError(f"a table must exist, {table} does not; look at the path")
    columns = {"picture_column": picture_column, "caption_column": caption_column}
    count = 0
    for line, row in _rows(table):
        if "turns" not in row:
            for option, column in columns.items():
                if column and column not in row:
                    raise ValueError(
                        f"a table must have the column {column!r}, {table} has {', '.join(map(str, row))}, line {line}"
                        f"; name another with {option}, or none with an empty {option}"
                    )
        try:
            members = _row_members(row, table.parent, picture_column, caption_column)
        except OSError as error:
            raise ValueError(
                f"the picture of line {line} of {table} must be readable, {error.filename} is not ({error.strerror})"
            ) from error
        yield Sample(f"{count:08d}", members)
        count += 1
    if not count:
        raise ValueError(f"a table must hold at least one row, {table} holds none")


def key_of(name: str) -> str:
    """Turn a path without its suffix into a key: the dots in its last part become underscores."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.replace(".", "_")


class Sieve:
    """Let good samples through and count the others by reason; with `size`, shrink pictures to that shorter side.

    >>> sieve = Sieve(max_bad_fraction=0.5)
    >>> [sample.key for sample in sieve([Sample("0", {"txt": b"a dog"}), Sample("1", {"txt": b" "})])]
    ['0']
    >>> dict(sieve.bad)
    {'caption empty': 1}
    """

    def __init__(self, *, max_bad_fraction: float, size: int | None = None) -> None:
        """Begin with all counts at 0."""
        if size is not None and size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        self.max_bad_fraction = max_bad_fraction
        self.size = size
        self.bad: Counter[str] = Counter()
        self.holds: Counter[str] = Counter()  # how many good samples hold a picture, a caption, turns
        self.good = 0
        self.first_bad = ""
        self.first_of: dict[str, str] = {}  # reason -> key

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the good samples.

        Raises ValueError at the end when more than `max_bad_fraction` of them were bad.
        """
        for sample in samples:
            try:
                kept = sample if self.size is None else Sample(sample.key, _shrink(sample.members, self.size))
                holds = check_members(kept.members)
            except SetAside as refusal:
                self.bad[refusal.reason] += 1
                self.first_bad = self.first_bad or f"{sample.key}: {refusal}"
                self.first_of.setdefault(refusal.reason, sample.key)
                continue
            self.good += 1
            self.holds.update(str(part.name).lower() for part in holds)
            yield kept
        bad = self.bad.total()
        if bad > self.max_bad_fraction * (bad + self.good):
            reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(self.bad.items()))
            raise ValueError(
                f"at most {self.max_bad_fraction:.2%} of the samples may be bad, got {bad} of {bad + self.good} "
                f"({reasons}); the first is {self.first_bad}; repair them or raise max_bad_fraction"
            )


def _rows(table: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the rows of a table with their line numbers."""
    kind = table.suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl", ".ndjson"):
        raise ValueError(f"a table must be .csv, .tsv or .jsonl, got {table}")
    try:
        with table.open(encoding="utf-8-sig", newline="" if kind in (".csv", ".tsv") else None) as stream:
            if kind in (".csv", ".tsv"):
                reader = csv.DictReader(stream, delimiter="\t" if kind == ".tsv" else ",", restval="")
                for row in reader:
                    if None in row:
                        raise ValueError(
                            f"line {reader.line_num} of {table} has more fields than columns; quote its commas"
                        )
                    yield reader.line_num, row
                return
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, _json_row(table, number, line)
    except UnicodeDecodeError as error:
        raise ValueError(f"a table must be UTF-8, {table} is not ({error}); convert it") from error
    except csv.Error as error:
        raise ValueError(f"a table must be readable, {table} is not ({error})") from error


def _json_row(table: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"each line must be JSON, line {number} of {table} is not ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"each line must be a JSON object, line {number} of {table} is a {type(row).__name__}")
    return row


def _row_members(row: Mapping[str, Any], folder: Path, picture_column: str, caption_column: str) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    record = {name: row[name] for name in RECORD_FIELDS if name in row}
    named: dict[str, str] = {}  # path -> extension, so that a picture that is looked at twice is stored once
    if row.get(picture_column):
        _store(str(row[picture_column]), folder, members, named)
    if caption_column in row:
        members["txt"] = str(row[caption_column] or "").encode("utf-8", "surrogatepass")
    if "turns" in row:
        record["turns"] = _store_turns(row["turns"], folder, members, named)
    if record:
        members["json"] = json.dumps(record, ensure_ascii=True, sort_keys=True).encode()
    return members


def _store_turns(turns: Any, folder: Path, members: dict[str, bytes], named: dict[str, str]) -> Any:
    """Copy turns with each path replaced by the extension of the member that now holds the picture."""
    if not isinstance(turns, list):
        return turns  # the sieve says what is wrong with it
    return [
        {
            **turn,
            "parts": [
                {
                    kind: _store(value, folder, members, named) if kind in ("look", "draw") else value
                    for kind, value in part.items()
                }
                if isinstance(part, dict)
                else part
                for part in turn["parts"]
            ],
        }
        if isinstance(turn, dict) and isinstance(turn.get("parts"), list)
        else turn
        for turn in turns
    ]


def _store(name: Any, folder: Path, members: dict[str, bytes], named: dict[str, str]) -> Any:
    """Read a picture into the members and return its extension."""
    if not isinstance(name, str):
        return name
    if name not in named:
        path = folder / name
        extension = path.suffix[1:].lower()
        if extension not in IMAGE_KEYS:
            raise ValueError(f"a picture must be one of {', '.join(IMAGE_KEYS)}, got {path}; convert it first")
        named[name] = f"{len(named)}.{extension}" if named else extension
        members[named[name]] = path.read_bytes()
    return named[name]


def _shrink(members: Mapping[str, bytes], size: int) -> dict[str, bytes]:
    """Return members whose pictures have at most `size` pixels on the shorter side."""
    return {
        extension: _shrink_picture(data, size, extension) if extension.rpartition(".")[2] in IMAGE_KEYS else data
        for extension, data in members.items()
    }


def _shrink_picture(data: bytes, size: int, extension: str) -> bytes:
    """Shrink one picture in its own format; a picture that is small enough stays as it is."""
    from PIL import Image

    from anymodal.data.pictures import decode_picture

    check_picture(data)
    image = decode_picture(data)
    scale = size / min(image.size)
    if scale >= 1:
        return data
    width, height = (max(1, round(side * scale)) for side in image.size)
    format_name = {"jpg": "JPEG"}.get(suffix := extension.rpartition(".")[2], suffix.upper())
    options = {} if format_name == "PNG" else {"quality": WEBP_QUALITY}
    stream = io.BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS).save(stream, format_name, **options)
    return stream.getvalue()
