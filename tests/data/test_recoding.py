import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anymodal.data.coding import Coding
from anymodal.data.index import ShardIndex
from anymodal.data.recoding import NOTE, Form, Recoded, Recoding, check_folder, recode
from anymodal.data.samples import Reading, codes_of
from anymodal.data.shards import Sample, write_shards
from anymodal.learning.batches import DocumentBatches, check_codes
from anymodal.learning.config import StageConfig
from anymodal.tokens.image import ImageTokenizer


@pytest.fixture
def shards(toy: Any, tmp_path: Path) -> Path:
    """Write six shards of four samples; one sample has no picture."""
    index = ShardIndex.open(toy.plain)
    samples = [index.read(i) for i in range(23)] + [Sample("bare", {"txt": b"no picture"})]
    write_shards(samples, f"{tmp_path}/plain/%06d.tar", samples_per_shard=4)
    return tmp_path / "plain"


def recoding(toy: Any, out: Path, form: Form = "members", **changes: Any) -> Recoding:
    views = changes.pop("views", 1)
    coding = Coding(tokenizer=ImageTokenizer.from_pretrained(toy.image_tokenizer), size=16, views=views)
    return Recoding(coding=coding, out=out, form=form, **changes)


def run(shards: Path, made: Recoding, rank: int = 0, world: int = 1, **options: Any) -> Recoded:
    paths = sorted(map(str, shards.glob("*.tar")))
    return recode(ShardIndex.open(paths[rank::world]), range(rank, len(paths), world), made, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("form", ["members", "records"])
def test_any_number_of_processes_writes_the_same_bytes(toy: Any, shards: Path, tmp_path: Path, form: Form) -> None:
    assert run(shards, recoding(toy, tmp_path / "one", form)) == Recoded(samples=24, written=6, kept=0)
    for rank in (2, 0, 1):
        assert run(shards, recoding(toy, tmp_path / "three", form), rank, 3) == Recoded(samples=8, written=2, kept=0)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert len(contents(tmp_path / "one")) == (18 if form == "members" else 6)
    again = run(shards, recoding(toy, tmp_path / "three", form))
    assert again == Recoded(samples=24, written=0, kept=6)


@pytest.mark.parametrize("form", ["members", "records"])
def test_a_killed_run_goes_on_where_it_was(toy: Any, shards: Path, tmp_path: Path, form: Form) -> None:
    def killed(numbers: Sequence[int]) -> Iterator[int]:
        yield from numbers[:8]  # two shards
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(shards, recoding(toy, tmp_path / "out", form), progress=killed)
    first = contents(tmp_path / "out")
    assert len(first) == (6 if form == "members" else 2)
    cut = sorted(path for path in (tmp_path / "out").iterdir() if path.suffix in (".tar", ".safetensors"))[1]
    cut.write_bytes(cut.read_bytes()[:-512])  # not by us, but it must be seen
    (tmp_path / "out" / f".{cut.name}.0123abcd.partial").write_bytes(b"half a shard")
    seen: list[int] = []

    def noted(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            seen.append(number)
            yield number

    made = run(shards, recoding(toy, tmp_path / "out", form), progress=noted)
    assert made == Recoded(samples=24, written=5, kept=1)
    assert seen == list(range(24))
    run(shards, recoding(toy, tmp_path / "whole", form))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_shard_without_its_index_is_made_again(toy: Any, shards: Path, tmp_path: Path) -> None:
    made = recoding(toy, tmp_path / "out")
    run(shards, made)
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "000000.tar.index.npz").unlink()  # killed between two renames
    (tmp_path / "out" / "000001.tar").unlink()
    (tmp_path / "out" / ("000002.tar" + NOTE)).write_text("{")
    assert run(shards, made).kept == 3
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("form", ["members", "records"])
def test_what_was_made_of_something_else_is_refused(toy: Any, shards: Path, tmp_path: Path, form: Form) -> None:
    made = recoding(toy, tmp_path / "out", form)
    run(shards, made)
    other = replace(made, coding=replace(made.coding, size=32))
    with pytest.raises(ValueError, match="its size is 16, now it is 32; choose another folder or set overwrite"):
        run(shards, other)
    assert run(shards, replace(other, overwrite=True)).written == 6
    assert run(shards, replace(other, overwrite=True)).kept == 6, "what is right stays"


def test_a_source_that_changed_is_refused_or_has_records_of_its_own(toy: Any, shards: Path, tmp_path: Path) -> None:
    members, records = recoding(toy, tmp_path / "out"), recoding(toy, tmp_path / "records", "records")
    run(shards, members)
    run(shards, records)
    samples = [ShardIndex.open(str(shards)).read(i) for i in (3, 2, 1, 0)]
    write_shards(samples, f"{tmp_path}/new/%06d.tar")
    os.replace(tmp_path / "new" / "000000.tar", shards / "000000.tar")
    os.replace(tmp_path / "new" / "000000.tar.index.npz", shards / "000000.tar.index.npz")
    with pytest.raises(ValueError, match="000000.tar must have been made of the same: its shard_"):
        run(shards, members)
    assert run(shards, records) == Recoded(samples=24, written=1, kept=5)


def test_foreign_files_are_left_alone(toy: Any, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_shards([Sample("0", {"txt": b"mine"})] * 1, f"{folder}/%06d.tar")
    before = contents(folder)
    with pytest.raises(ValueError, match="000000.tar must not exist"):
        run(shards, recoding(toy, folder))
    assert contents(folder) == before
    check_folder(folder, 1, overwrite=False)
    (folder / "000006.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="no shards but the 6 that are written there, got 000006.tar"):
        check_folder(folder, 6, overwrite=False)
    check_folder(folder, 6, overwrite=True)
    assert contents(folder) == before


def test_the_codes_are_those_of_both_forms(toy: Any, shards: Path, tmp_path: Path) -> None:
    for form in ("members", "records"):
        run(shards, recoding(toy, tmp_path / form, form, views=3))
    fingerprint = ImageTokenizer.from_pretrained(toy.image_tokenizer).fingerprint
    raw = ShardIndex.open(str(shards))
    inside, beside = ShardIndex.open(str(tmp_path / "members")), raw.with_codes(tmp_path / "records", fingerprint)
    reading, random = Reading(fingerprint=fingerprint, look_size=None), np.random.default_rng
    drawn = set()
    for number in range(23):
        one, other = inside.read(number), beside.read(number)
        assert other.members == raw.read(number).members
        assert codes_of(one, reading).equal(codes_of(other, reading))
        for seed in range(4):
            view = codes_of(one, reading, random=random(seed))
            assert view.equal(codes_of(other, reading, random=random(seed)))
            drawn.add((number, *view.flatten().tolist()))
    assert len(drawn) > 23, "views differ"
    assert beside.read(23).codes == {}
    plain = ShardIndex.open(toy.coded).read(0)
    assert codes_of(plain, reading).equal(codes_of(inside.read(0), reading)), "the first view is the picture itself"


@pytest.mark.parametrize("views", [1, 3])
def test_batches_are_the_same_with_records(toy: Any, shards: Path, tmp_path: Path, views: int) -> None:
    parts = toy.parts()
    fingerprint = parts.image_tokenizer.fingerprint
    for form in ("members", "records"):
        run(shards, recoding(toy, tmp_path / form, form, views=views))
    inside = ShardIndex.open(str(tmp_path / "members"))
    beside = ShardIndex.open(str(shards)).with_codes(tmp_path / "records", fingerprint)
    reading = Reading(fingerprint=fingerprint, look_size=16, prompt_dropout=0.5)
    one, other = (
        DocumentBatches(
            index,
            encoder=parts.encoder(),
            reading=reading,
            stage=StageConfig(seq_len=256),
            order={"batch_size": 6, "seed": 7, "steps": 4},
        )
        for index in (inside, beside)
    )
    check_codes(beside, reading)
    for step in range(4):
        left, right = one[step], other[step]
        for name in ("ids", "targets", "positions", "documents", "look_pixels", "look_index"):
            assert getattr(left, name).equal(getattr(right, name)), name
    with pytest.raises(ValueError, match="carries no codes"):
        check_codes(ShardIndex.open(str(shards)), reading)


def test_records_are_checked_when_they_are_opened(toy: Any, shards: Path, tmp_path: Path) -> None:
    run(shards, recoding(toy, tmp_path / "out", "records"), rank=0, world=2)
    index = ShardIndex.open(str(shards))
    fingerprint = ImageTokenizer.from_pretrained(toy.image_tokenizer).fingerprint
    with pytest.raises(ValueError, match=f"codes of {fingerprint} for every shard, got none for .*000001.tar.*3 of 6"):
        index.with_codes(tmp_path / "out", fingerprint)
    with pytest.raises(ValueError, match="codes of f00d for every shard.*6 of 6 shards.*--form records"):
        index.with_codes(tmp_path / "out", "f00d")


def test_numbers_below_one_are_refused(toy: Any) -> None:
    with pytest.raises(ValueError, match="views must be at least 1, got 0"):
        recoding(toy, Path("out"), views=0)


def test_two_processes_share_the_work_and_a_killed_one_is_resumed(toy: Any, shards: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "anymodal", "tokenizers", "codes", "--shards", str(shards), "--size", "16"]
    words += ["--image_tokenizer", str(toy.image_tokenizer), "--out", str(tmp_path / "out"), "--form", "records"]

    def start(rank: int) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "RANK": f"{rank}", "WORLD_SIZE": "2"}
        return subprocess.Popen(words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    killed, other = start(0), start(1)
    while killed.poll() is None and not list((tmp_path / "out").glob("*.safetensors")):
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    for process in (other, start(0)):
        assert "12 samples in 3 records of codes of" in process.communicate()[0]
    run(shards, recoding(toy, tmp_path / "one", "records"))
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_notes_name_what_the_codes_are_made_of(toy: Any, shards: Path, tmp_path: Path) -> None:
    run(shards, recoding(toy, tmp_path / "out", keep_pictures=False))
    said = json.loads((tmp_path / "out" / ("000000.tar" + NOTE)).read_text())
    assert said["about"]["size"] == 16
    assert said["bytes"] == (tmp_path / "out" / "000000.tar").stat().st_size
    members = ShardIndex.open(str(tmp_path / "out")).read(0).members
    assert not any(name.endswith(("png", "webp")) for name in members)
    (name,) = (name for name in members if name.endswith(".npy"))
    assert np.load(io.BytesIO(members[name])).dtype == np.uint16
