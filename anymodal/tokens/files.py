"""Small files of a model folder that someone else made: read up to a bound, and from the folder alone."""

import json
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 32_000_000
MAX_JSON_VALUES = 2_000_000
MAX_SIDE_BYTES = 100_000_000


def read_bytes(path: Path, limit: int) -> bytes:
    """Return what a file of at most `limit` bytes holds.

    Raises:
        ValueError: it is missing, larger, or no regular file: a pipe or a device could be read without end.
    """
    if not path.is_file():
        wrong = "is no regular file" if path.exists() else "is missing"
        raise ValueError(f"{path} {wrong}; a model folder needs it.")
    if (size := path.stat().st_size) > limit:
        raise ValueError(f"{path} has {size} bytes, at most {limit} are read; the file is broken or hostile.")
    with path.open("rb") as file:
        return file.read(limit)


def read_object(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file of at most `limit` bytes.

    A short list takes twenty times the memory of its text, so the number of values has a bound too.

    Raises:
        ValueError: the file is missing, too large, or holds no JSON object.
    """
    data = read_bytes(path, limit)
    if sum(data.count(each) for each in (b",", b"[", b"{")) > MAX_JSON_VALUES:
        raise ValueError(f"{path} holds over {MAX_JSON_VALUES} values; the file is broken or hostile.")
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); copy or download it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(found).__name__}.")
    return found


def check_within(path: Path) -> None:
    """Check that a file lies in its folder, even where it is a link.

    A link may also lead into the `blobs` of a hub's cache that the folder is a snapshot of.

    Raises:
        ValueError: it leads elsewhere: what is read there is no part of the folder, and may be private.
    """
    home, real = path.parent.resolve(), path.resolve()
    blobs = [place.parent / "blobs" for place in home.parents if place.name == "snapshots"]
    if real.parent not in (home, *blobs):
        raise ValueError(f"{path} is a link that leads out of its folder to {real}; copy the file there instead.")
