"""Processes that prepare batches die or hang: the run ends with advice. Few or uneven shards: equal steps."""

import signal
from pathlib import Path
from typing import Any

import pytest

from anymodal.data.index import ShardIndex
from anymodal.data.samples import Reading
from anymodal.data.shards import write_shards
from anymodal.learning.batches import DocumentBatches
from anymodal.learning.config import StageConfig

WORDS = ("--data.num_workers", "2", "--run.steps", "1000", "--run.validate_every", "0")


@pytest.mark.usefixtures("tally")
@pytest.mark.parametrize(
    ("number", "timeout_s", "happened", "way_out"),
    [
        (signal.SIGKILL, 600, "a process that prepares batches has died", "lower data.num_workers"),
        (signal.SIGSTOP, 2, "processes that prepare batches delivered none for 2 s", "raise data.worker_timeout_s"),
    ],
)
def test_a_worker_that_dies_or_hangs_ends_the_run(
    programs: Any, tmp_path: Path, number: int, timeout_s: int, happened: str, way_out: str
) -> None:
    words = [*WORDS, "--data.worker_timeout_s", str(timeout_s)]
    ended = programs(tmp_path, *words, after=2, kind="harm_worker", signal=int(number))
    assert ended.code == 2, ended.log
    assert happened in ended.log
    assert way_out in ended.log
    assert "Traceback" not in ended.log
    assert not ended.left
    print(f"ended after {ended.seconds:.1f} s")


STEPS = 6


def uneven(toy: Any, folder: Path, sizes: list[int]) -> ShardIndex:
    """Write the toy's first samples into shards of these sizes."""
    index, first = ShardIndex.open(toy.coded), 0
    for number, size in enumerate(sizes):
        write_shards([index.read(i) for i in range(first, first + size)], f"{folder}/{number:03d}-%d.tar")
        first += size
    return ShardIndex.open(str(folder))


def batches(toy: Any, index: ShardIndex, rank: int, world: int, batch_size: int = 8) -> DocumentBatches:
    parts = toy.parts()
    return DocumentBatches(
        index,
        encoder=parts.encoder(),
        reading=Reading(fingerprint=parts.image_tokenizer.fingerprint, look_size=16, prompt_dropout=0.0),
        stage=StageConfig(seq_len=256),
        order={"batch_size": batch_size, "seed": 3, "steps": STEPS, "cache_shards": 2},
        rank=(rank, world),
    )


@pytest.mark.usefixtures("tally")
@pytest.mark.parametrize("sizes", [[5], [1] * 10, [17, 1, 3, 1], [12, 12]], ids=str)
@pytest.mark.parametrize("world", [2, 8])
def test_every_process_makes_as_many_steps_whatever_the_shards(
    toy: Any, tmp_path: Path, sizes: list[int], world: int
) -> None:
    index = uneven(toy, tmp_path, sizes)
    ranks = [batches(toy, index, rank, world) for rank in range(world)]
    assert {len(each) for each in ranks} == {STEPS}
    whole = batches(toy, index, 0, 1)
    for step in range(STEPS):
        slots = [each.slots(step) for each in ranks]
        assert {len(each) for each in slots} == {8 // world}
        assert sorted(slot for each in slots for slot in each) == sorted(whole.slots(step))
    made = [each[STEPS - 1] for each in ranks]
    assert all(batch.num_tokens > 0 for batch in made)
    assert sum(batch.num_tokens for batch in made) == whole[STEPS - 1].num_tokens


def test_more_workers_than_shards_change_nothing(programs: Any, tmp_path: Path) -> None:
    """The five shards of the run feed none and eight processes."""
    words = ("--run.steps", "3", "--run.validate_every", "0")
    diaries = []
    for workers in ("0", "8"):
        assert programs(tmp_path / workers, *words, "--data.num_workers", workers, diary=True).code == 0
        diaries.append((tmp_path / workers / "diary.jsonl").read_text())
    assert diaries[0].count("\n") == 3
    assert diaries[0] == diaries[1]


def test_a_batch_that_processes_cannot_share_is_refused_with_the_counts(toy: Any) -> None:
    with pytest.raises(ValueError, match="multiple of the number of ranks, got 9 on 2"):
        batches(toy, ShardIndex.open(toy.coded), 1, 2, batch_size=9)[0]
