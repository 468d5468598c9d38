"""Writing shards: deterministic, whole or not at all, readable by webdataset; finding them by pattern."""

import os
import resource
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from anymodal.data.index import ShardIndex
from anymodal.data.shards import Sample, expand, write_shards

SAMPLES = [Sample(f"{number:03d}", {"txt": b"a red apple", "json": b"{}"}) for number in range(5)]


def test_write_makes_shards_that_tarfile_reads(tmp_path: Path) -> None:
    shards = write_shards(SAMPLES, f"{tmp_path}/train-%06d.tar", samples_per_shard=2)
    assert [shard.name for shard in shards] == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    with tarfile.open(shards[2]) as tar:
        assert tar.getnames() == ["004.json", "004.txt"]
        assert {(entry.mtime, entry.uname, entry.uid) for entry in tar} == {(0, "", 0)}
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".npz") == [
        f"train-00000{number}.tar.index.npz" for number in range(3)
    ]


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_shards(SAMPLES, f"{tmp_path}/a/%03d.tar")[0]
    second = write_shards(iter(SAMPLES), f"{tmp_path}/b/%03d.tar")[0]
    assert first.read_bytes() == second.read_bytes()
    indexes = [shard.with_name(f"{shard.name}.index.npz") for shard in (first, second)]
    assert indexes[0].read_bytes() == indexes[1].read_bytes()


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Sample]:
        yield from SAMPLES
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(broken(), f"{tmp_path}/%03d.tar", samples_per_shard=2)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    for name in (".000.tar.0a1b2c3d.partial", ".001.tar.index.npz.0a1b2c3d.partial", ".other.partial"):
        (tmp_path / name).touch()
    write_shards(SAMPLES, f"{tmp_path}/%03d.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.partial", "000.tar", "000.tar.index.npz"]


def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path: Path) -> None:
    old = write_shards(SAMPLES, f"{tmp_path}/%03d.tar")[0].read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = [Sample(f"{number}", {"npy": os.urandom(50_000)}) for number in range(20)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"000\.tar needs more room than its disk has"):
            write_shards(big, f"{tmp_path}/%03d.tar", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "000.tar").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000.tar", "000.tar.index.npz"]


def test_older_shards_are_replaced_only_when_asked(tmp_path: Path) -> None:
    pattern = f"{tmp_path}/%03d.tar"
    write_shards(SAMPLES, pattern, samples_per_shard=1)
    with pytest.raises(ValueError, match=r"000\.tar does \(5 in all\).*overwrite"):
        write_shards(SAMPLES, pattern)
    write_shards(SAMPLES[:3], pattern, samples_per_shard=2, overwrite=True)
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["000.tar", "001.tar"]
    assert len(list(tmp_path.iterdir())) == 4
    assert len(ShardIndex.open(f"{tmp_path}/*.tar")) == 3


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample("a.b", {"txt": b"x"}), "without a dot in its last part"),
        (Sample("../a", {"txt": b"x"}), "'..' in the name"),
        (Sample("/a", {"txt": b"x"}), "absolute name"),
        (Sample("", {"txt": b"x"}), "must be a relative path"),
        (Sample("a", {"TXT": b"x"}), "small letters"),
        (Sample("a", {"_txt": b"x"}), "small letters"),
        (Sample("a", {}), "got none"),
        (SAMPLES[0], "comes again"),
    ],
)
def test_write_refuses_names(tmp_path: Path, sample: Sample, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_shards([SAMPLES[0], sample], f"{tmp_path}/%03d.tar")
    assert list(tmp_path.iterdir()) == []


def test_write_refuses_no_samples_and_bad_patterns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        write_shards([], f"{tmp_path}/%03d.tar")
    for pattern in ("train.tar", "%d-%d.tar", "%03d.tgz", "%s.tar"):
        with pytest.raises(ValueError, match="must hold one number"):
            write_shards(SAMPLES, f"{tmp_path}/{pattern}")


def test_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a-00.tar", "a-01.tar", "b-00.tar", "notes.txt"):
        Path(name).touch()
    assert expand("a-{00..01}.tar") == ["a-00.tar", "a-01.tar"]
    assert expand("a-{00..01}.tar::b-00.tar") == ["a-00.tar", "a-01.tar", "b-00.tar"]
    assert expand(["b-*.tar", "a-01.tar"]) == ["b-00.tar", "a-01.tar"]
    Path("c[0]").mkdir()
    Path("c[0]/{1,2}.tar").touch()
    assert expand(expand("c[0]")) == ["c[0]/{1,2}.tar"], "what is expanded names itself"
    assert expand(str(tmp_path)) == [f"{tmp_path}/{name}" for name in ("a-00.tar", "a-01.tar", "b-00.tar")]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a-{00..02}.tar", r"a-01\.tar does not \(2 of the 3 of a-\{00\.\.02\}\.tar\)"),
        ("z-*.tar", "matches none"),
        ("a-{00.tar", "braces must be balanced|must exist"),
        ("a.tar.gz", r"uncompressed tar.*a\.tar\.gz"),
        ("pipe:cat a.tar", "must be a file or an address"),
        ("a-00.tar::a-00.tar", "named once"),
        ("", "got none"),
        ("empty", "holds none"),
    ],
)
def test_expand_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-00.tar").touch()
    Path("a.tar.gz").touch()
    Path("empty").mkdir()
    with pytest.raises(ValueError, match=message):
        expand(pattern)
