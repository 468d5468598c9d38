"""Remote shards: fetched whole into a folder of local copies, where the oldest make room for the newest."""

import fcntl
import glob
import hashlib
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from anymodal.data.files import FULL, StagedFile
from anymodal.data.scan import SUFFIX, Summary, load_summary, scan_shard, stage_index

TRIES = 3
PAUSE_S = 1.0  # before the second try, twice as long before the third
LOCKS = 64
PIECE_BYTES = 1 << 20


def is_remote(shard: str) -> bool:
    """Tell an address from a path.

    >>> is_remote("s3://bucket/000000.tar"), is_remote("data/000000.tar")
    (True, False)
    """
    return "://" in shard


def expand_remote(pattern: str) -> list[str]:
    """Return the addresses that a pattern names: braces, globs, and folders, as far as the server lists them.

    Raises ValueError when nothing matches, or the protocol is unknown or needs a package.
    """
    from braceexpand import braceexpand  # it comes with webdataset

    found: list[str] = []
    for name in braceexpand(pattern):
        listing = any(sign in name for sign in "*[")  # "?" begins what follows a signed address
        if ".tar" in name.rpartition("/")[2] and not listing:
            found.append(name)
            continue
        wanted = name if listing else f"{name.rstrip('/')}/*.tar"
        files, path = _filesystem(wanted)
        try:
            listed = sorted(files.unstrip_protocol(each) for each in files.glob(path))
        except Exception as error:  # every protocol has errors of its own
            raise ValueError(f"{wanted} must be readable, but it is not ({error}); look at the address") from error
        if not listed:
            raise ValueError(f"a pattern must match at least one shard, {wanted} matches none; look at the address")
        found += listed
    return found


class ShardCache:
    """Keep local copies of up to `limit` remote shards, for all processes of this machine that name the same folder.

    >>> ShardCache(Path("copies"), 32).place("s3://bucket/000000.tar").name
    '000000.20c4032a.tar'
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Name the folder, which is made when it is needed.

        Raises ValueError when the limit is below 1.
        """
        if limit < 1:
            raise ValueError(f"at least 1 shard must be kept, got {limit}")
        self.folder, self.limit = folder, limit

    def place(self, address: str) -> Path:
        """Name the local copy of a shard."""
        stem = Path(address.partition("?")[0]).stem
        return self.folder / f"{stem}.{hashlib.sha256(address.encode()).hexdigest()[:8]}.tar"

    def open(self, address: str, size: int, crc32: int) -> int:
        """Return a descriptor of the local copy, fetched where there is none; its content stays readable when evicted.

        Raises ValueError when it cannot be fetched, or is not what was indexed.
        """
        place = self.place(address)
        with suppress(FileNotFoundError):
            descriptor = os.open(place, os.O_RDONLY)
            if os.fstat(descriptor).st_size == size:
                os.utime(descriptor)  # the oldest are those that nobody has opened for long
                return descriptor
            os.close(descriptor)
            place.unlink(missing_ok=True)
        return self._fetched(address, (size, crc32))

    def fetch(self, address: str) -> Path:
        """Fetch a shard where there is no copy of it, and name the copy, which others may evict at any time.

        Raises ValueError when it cannot be fetched.
        """
        os.close(self._fetched(address))
        return self.place(address)

    def _fetched(self, address: str, content: tuple[int, int] | None = None) -> int:
        """Return a descriptor of a copy, fetched where there is none; check its size and crc32 where they are known.

        A copy is opened before others see it, and can evict it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.place(address)
        with self._locked(target):
            try:
                descriptor = os.open(target, os.O_RDONLY)
            except FileNotFoundError:
                descriptor = self._copied(address, target, content)
        self._make_room(target)
        return descriptor

    def _copied(self, address: str, target: Path, content: tuple[int, int] | None) -> int:
        for orphan in self.folder.glob(f".{glob.escape(target.name)}.*.partial"):
            orphan.unlink()  # nobody else fetches it now: a killed process left this
        staged = StagedFile(target)
        try:
            _download(address, staged.staged)
            if content is not None and (found := _content(staged.staged)) != content:
                raise ValueError(
                    f"a shard must stay as it was indexed: {address} has changed, size and crc32 were "
                    f"{content} and are {found}; delete its index among the copies if the change is meant"
                )
            descriptor = os.open(staged.staged, os.O_RDONLY)
            try:
                staged.commit()
            except BaseException:
                os.close(descriptor)
                raise
            return descriptor
        finally:
            staged.discard()

    def index_of(
        self, address: str, *, folder: Path | None, image_keys: tuple[str, ...], verify_pictures: bool
    ) -> tuple[Path, Summary]:
        """Return the index of a shard: the one here, or the one beside it, or one made of the shard, which is fetched.

        It is kept in `folder`, or among the copies.

        Raises ValueError when the shard cannot be fetched or is broken.
        """
        place = (folder or self.folder) / f"{self.place(address).name}{SUFFIX}"
        if not place.exists():
            _fetch_index(address + SUFFIX, place)
        if place.exists():
            summary = load_summary(place)
            if summary.serves(image_keys=image_keys, verify_pictures=verify_pictures):
                return place, summary
        descriptor = self._fetched(address)
        try:
            copy = Path(f"/dev/fd/{descriptor}")  # it is read to its end, evicted or not
            table = scan_shard(copy, image_keys=image_keys, verify_pictures=verify_pictures, name=address)
        finally:
            os.close(descriptor)
        place.parent.mkdir(parents=True, exist_ok=True)
        stage_index(table, place).commit()
        return place, table.summary

    def _make_room(self, newest: Path) -> None:
        def age(path: Path) -> float:
            try:
                return path.stat().st_mtime
            except FileNotFoundError:  # another process was faster
                return 0.0

        copies = sorted((path for path in self.folder.glob("*.tar") if path != newest), key=age)
        for path in copies[: max(0, len(copies) + 1 - self.limit)]:
            path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, target: Path) -> Iterator[None]:
        """Let one process at a time fetch a shard; the lock of one that is killed is free."""
        number = zlib.crc32(target.name.encode()) % LOCKS
        with (self.folder / f".lock-{number:02d}").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _filesystem(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # it comes with torch and lightning

    try:
        files, path = url_to_fs(address)
    except ImportError as error:
        raise ValueError(f"{address} needs a package of its own ({error}); install it beside fsspec") from error
    except ValueError as error:
        raise ValueError(
            f"{address} must have a protocol that fsspec knows, such as s3, gs or https: {error}"
        ) from error
    return files, path


def _fetch_index(address: str, target: Path) -> None:
    """Fetch an index that stands beside its shard, where there is a readable one."""
    files, path = _filesystem(address)
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = StagedFile(target)
    try:
        with staged.open() as stream:
            stream.write(files.cat_file(path))
        load_summary(staged.staged)
        staged.commit()
    except Exception:  # not there, not allowed, or no index: it is made from the shard
        staged.discard()


def _download(address: str, target: Path) -> None:
    """Write a remote file to a local one, with some patience."""
    files, path = _filesystem(address)
    for number in range(1, TRIES + 1):
        try:
            files.get_file(path, str(target))
            return
        except FileNotFoundError as error:
            raise ValueError(f"every shard must exist: {address} does not; look at the address") from error
        except Exception as error:  # every protocol has errors of its own
            if isinstance(error, OSError) and error.errno in FULL:
                raise ValueError(
                    f"the local copy of {address} needs more room than its disk has ({error.strerror}); make room, "
                    "lower cache_shards or choose another cache_folder"
                ) from error
            if number == TRIES:
                raise ValueError(
                    f"{address} could not be fetched in {TRIES} tries ({error!r}); see that the server answers, and "
                    "run the same command again"
                ) from error
            time.sleep(PAUSE_S * number)


def _content(path: Path) -> tuple[int, int]:
    size = crc32 = 0
    with path.open("rb") as stream:
        while piece := stream.read(PIECE_BYTES):
            size, crc32 = size + len(piece), zlib.crc32(piece, crc32)
    return size, crc32
