import functools
import http.server
import importlib.util
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from anymodal.data.config import DataConfig
from anymodal.data.index import ShardIndex
from anymodal.data.opening import open_shards
from anymodal.data.remote import ShardCache, expand_remote, is_remote
from anymodal.data.samples import Reading
from anymodal.data.shards import Sample, expand, write_shards
from anymodal.learning.batches import DocumentBatches, StepData, check_codes
from anymodal.learning.config import StageConfig


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Any]:
    """Give an empty memory filesystem."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """Serve a folder over HTTP on this machine; note what is asked for."""
    if importlib.util.find_spec("aiohttp") is None:
        pytest.skip("fsspec reads http by aiohttp")
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            asked.append(str(words[1]) if len(words) > 1 else "")

    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def shards(folder: Path, count: int = 6) -> list[Path]:
    samples = [Sample(f"{i}", {"txt": f"caption {i}".encode()}) for i in range(count * 2)]
    return write_shards(samples, f"{folder}/%06d.tar", samples_per_shard=2)


def upload(memory: Any, paths: list[Path], *, indexes: bool = False) -> None:
    for path in paths:
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
        if indexes:
            memory.pipe_file(f"/bucket/{path.name}.index.npz", path.with_name(f"{path.name}.index.npz").read_bytes())


def test_addresses_are_expanded(memory: Any, tmp_path: Path) -> None:
    upload(memory, shards(tmp_path / "local", 3))
    named = [f"memory://bucket/{i:06d}.tar" for i in range(3)]
    assert expand_remote("memory://bucket/{000000..000002}.tar") == named, "the server is not asked"
    assert expand_remote("memory://bucket") == expand_remote("memory://bucket/*.tar")
    assert [Path(each).name for each in expand("memory://bucket")] == [Path(each).name for each in named]
    assert expand(f"{tmp_path}/local/000000.tar::memory://bucket/000001.tar")[1] == named[1]
    assert expand("https://host/a.tar?signed=1") == ["https://host/a.tar?signed=1"]
    assert is_remote("gs://b/a.tar")
    with pytest.raises(ValueError, match="memory://nowhere/\\*.tar matches none"):
        expand("memory://nowhere")
    with pytest.raises(ValueError, match="pipes are not read"):
        expand("pipe:curl -s http://example.com/a.tar")
    with pytest.raises(ValueError, match="a shard must be an uncompressed tar"):
        expand("memory://bucket/a.tar.gz")
    with pytest.raises(ValueError, match="must have a protocol that fsspec knows"):
        expand("nosuch://bucket")
    if importlib.util.find_spec("s3fs") is None:
        with pytest.raises(ValueError, match="needs a package of its own .*s3fs"):
            expand("s3://bucket")


@pytest.mark.parametrize("indexes", [False, True])
def test_shards_are_read_through_copies(memory: Any, tmp_path: Path, indexes: bool) -> None:
    local = shards(tmp_path / "local")
    upload(memory, local, indexes=indexes)
    cache = ShardCache(tmp_path / "cache", 2)
    with pytest.raises(ValueError, match="remote shards need a folder for copies.*name a cache_folder"):
        ShardIndex.open("memory://bucket")
    names = "memory://bucket/{000000..000005}.tar"
    index, plain = ShardIndex.open(names, cache=cache), ShardIndex.open(str(tmp_path / "local"))
    assert len(list((tmp_path / "cache").glob("*.tar"))) == (0 if indexes else 2), "an index beside a shard is enough"
    assert index.fingerprint == plain.fingerprint
    for number in [*range(12), 3, 0]:
        assert index.read(number) == plain.read(number)
        assert len(list((tmp_path / "cache").glob("*.tar"))) <= 2
    memory.store.clear()
    again = ShardIndex.open(names, cache=cache)
    assert len(again) == 12, "indexes are kept"
    assert again.read(0) == plain.read(0), "and so are the newest copies"
    with pytest.raises(ValueError, match="every shard must exist: memory://bucket/000005.tar does not"):
        again.read(11)


def test_the_copy_that_waited_longest_makes_room(memory: Any, tmp_path: Path) -> None:
    upload(memory, shards(tmp_path / "local", 4))
    cache = ShardCache(tmp_path / "cache", 3)
    addresses = [f"memory://bucket/{i:06d}.tar" for i in range(4)]
    index = ShardIndex.open(addresses, cache=ShardCache(tmp_path / "cache", 4))
    now = time.time()
    for age, address in enumerate(addresses):
        os.utime(cache.place(address), (now + age - 90, now + age - 90))
    os.close(cache.open(addresses[0], *index.contents[0]))
    cache.place(addresses[3]).unlink()
    cache.fetch(addresses[3])
    assert sorted(path.name[:6] for path in cache.folder.glob("*.tar")) == ["000000", "000002", "000003"]
    with pytest.raises(ValueError, match="at least 1 shard must be kept, got 0"):
        ShardCache(tmp_path, 0)


def test_a_shard_that_is_not_what_was_indexed_is_refused(memory: Any, tmp_path: Path) -> None:
    local = shards(tmp_path / "local", 2)
    upload(memory, local, indexes=True)
    index = ShardIndex.open("memory://bucket", cache=ShardCache(tmp_path / "cache", 2))
    changed = bytearray(local[0].read_bytes())
    changed[700] ^= 1
    memory.pipe_file("/bucket/000000.tar", bytes(changed))
    with pytest.raises(ValueError, match="000000.tar has changed, size and crc32 were"):
        index.read(0)
    assert not list((tmp_path / "cache").glob("*.tar")), "nothing of it is kept"
    assert not list((tmp_path / "cache").glob(".*.partial"))
    memory.pipe_file("/bucket/000000.tar", local[0].read_bytes())
    place = index.cache.place(index.shards[0]) if index.cache else Path()
    place.write_bytes(b"half")  # what another program left
    (place.parent / f".{place.name}.0123abcd.partial").write_bytes(b"of a killed process")
    assert index.read(0).key == "0"
    assert not list((tmp_path / "cache").glob(".*.partial"))


def test_a_server_that_fails_is_asked_again(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(memory, shards(tmp_path / "local", 1))
    monkeypatch.setattr("anymodal.data.remote.PAUSE_S", 0.0)
    original, failures = type(memory).get_file, [2]

    def get_file(files: Any, *words: Any, **options: Any) -> None:
        if failures[0]:
            failures[0] -= 1
            raise ConnectionError("reset")
        original(files, *words, **options)

    monkeypatch.setattr(type(memory), "get_file", get_file)
    assert ShardCache(tmp_path / "cache", 1).fetch("memory://bucket/000000.tar").is_file()
    failures[0] = 9
    with pytest.raises(ValueError, match="could not be fetched in 3 tries .*reset"):
        ShardCache(tmp_path / "other", 1).fetch("memory://bucket/000000.tar")


def read_all(address: str, folder: str, start: Any, numbers: list[int]) -> list[str]:
    index = ShardIndex.open(address, cache=ShardCache(Path(folder), 2))
    start.wait()
    return [index.read(number).members["txt"].decode() for number in numbers]


def test_several_processes_share_the_copies(served: tuple[Path, str, list[str]], tmp_path: Path) -> None:
    folder, address, _ = served
    shards(folder)
    names = f"{address}/{{000000..000005}}.tar"
    context = multiprocessing.get_context("fork")  # as a DataLoader starts its workers
    with context.Manager() as manager:
        start, orders = manager.Barrier(3), [[*range(12)], [*range(11, -1, -1)], [0, 5, 11, 1, 4, 10, 2, 7]]
        tasks = [(names, str(tmp_path / "cache"), start, order) for order in orders]
        with context.Pool(3) as pool:
            found = pool.starmap(read_all, tasks, chunksize=1)
    assert found == [[f"caption {number}" for number in order] for order in orders]
    assert len(list((tmp_path / "cache").glob("*.tar"))) <= 2 + 3
    assert not list((tmp_path / "cache").glob(".*.partial"))


def test_processes_that_start_together_fetch_a_shard_once(served: tuple[Path, str, list[str]], tmp_path: Path) -> None:
    folder, address, asked = served
    shards(folder, 1)
    cache = ShardCache(tmp_path / "cache", 2)
    threads = [threading.Thread(target=cache.fetch, args=(f"{address}/000000.tar",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("GET /000000.tar " in line for line in asked) == 1


def test_batches_are_those_of_local_shards(toy: Any, served: tuple[Path, str, list[str]], tmp_path: Path) -> None:
    folder, address, asked = served
    source = ShardIndex.open(toy.coded)
    write_shards((source.read(i) for i in range(24)), f"{folder}/%06d.tar", samples_per_shard=3)
    parts = toy.parts()
    reading = Reading(fingerprint=parts.image_tokenizer.fingerprint, look_size=16)

    def batches(data: DataConfig) -> DocumentBatches:
        index = open_shards(data, data.train, fingerprint=reading.fingerprint)
        check_codes(index, reading)
        order = {"batch_size": 6, "seed": 7, "steps": 6, "cache_shards": data.cache_shards}
        return DocumentBatches(
            index, encoder=parts.encoder(), reading=reading, stage=StageConfig(seq_len=256), order=order
        )

    near = batches(DataConfig(train=str(folder), cache_shards=2))
    far = batches(DataConfig(train=address, cache_shards=2, cache_folder=str(tmp_path / "cache")))
    assert not any("GET" in line and ".tar " in line for line in asked), "no shard is fetched before it is needed"
    for step, delivery in enumerate(StepData(far, None, num_workers=1).train_dataloader()):
        assert delivery.batch.ids.equal(near[step].ids)
        assert delivery.batch.targets.equal(near[step].targets)
    assert len(list((tmp_path / "cache").rglob("*.tar"))) <= 2 * 2 + 2
