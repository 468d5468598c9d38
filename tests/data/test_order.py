"""The order law: pure, exact in its ratios, each sample once an epoch, the same for any number of ranks."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from anymodal.data.order import Order, Source, permutation

SOURCES = [
    Source(name="draw", shard_sizes=(7, 0, 12, 5), ratio=0.5),
    Source(name="answer", shard_sizes=(9, 8), ratio=0.3),
    Source(name="text", shard_sizes=(3,), ratio=0.2),
]


def make(**changes: object) -> Order:
    return Order(**{"sources": SOURCES, "batch_size": 8, "seed": 3, "cache_shards": 2} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [2, 4, 8])
def test_step_is_the_same_global_batch_for_every_world(world: int) -> None:
    order = make()
    ranks = [make() for _ in range(world)]
    for step in range(30):
        whole = order.step(step)
        parts = [mine.step(step, rank=rank, world=world) for rank, mine in enumerate(ranks)]
        assert {len(part) for part in parts} == {8 // world}
        assert [parts[place % world][place // world] for place in range(8)] == whole


def test_step_depends_on_nothing_but_its_number() -> None:
    forward = make()
    in_order = [forward.step(step) for step in range(40)]
    backward = make()
    assert [backward.step(step) for step in reversed(range(40))][::-1] == in_order
    assert [make(seed=4).step(step) for step in range(40)] != in_order


def test_an_epoch_holds_each_sample_once() -> None:
    order = make()
    slots = [slot for step in range(100) for slot in order.step(step)]
    for number, source in enumerate(SOURCES):
        size = sum(source.shard_sizes)
        mine = [slot for slot in slots if slot.source == number]
        assert [slot.number for slot in mine] == list(range(len(mine)))
        assert all(slot.epoch == slot.number // size for slot in mine)
        epochs = [mine[start : start + size] for start in range(0, len(mine) - size + 1, size)]
        assert len(epochs) > 5
        assert all(sorted(slot.sample for slot in epoch) == list(range(size)) for epoch in epochs)
        orders = {tuple(slot.sample for slot in epoch) for epoch in epochs}
        assert len(orders) > 1  # epochs differ


@pytest.mark.parametrize(
    "ratios", [(0.5, 0.3, 0.2), (1.0, 1.0, 1.0), (0.9, 0.0999, 0.0001), (3.7, 0.2, 11.1), (2 / 7, 1 / 3, 1 / 11)]
)
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_ratios_are_exact_over_every_prefix(ratios: tuple[float, ...], batch_size: int) -> None:
    sources = [Source(name=str(place), shard_sizes=(20_000,), ratio=ratio) for place, ratio in enumerate(ratios)]
    order = make(sources=sources, batch_size=batch_size)
    seen: Counter[int] = Counter()
    for step in range(150):
        seen.update(slot.source for slot in order.step(step))
        for place, ratio in enumerate(ratios):
            assert order.count(place, step + 1) == seen[place]
            assert abs(seen[place] - (step + 1) * batch_size * ratio / sum(ratios)) < 1


def test_ratios_without_a_common_denominator_are_rounded() -> None:
    sources = [Source(name=name, shard_sizes=(5,), ratio=ratio) for name, ratio in (("a", 2**0.5), ("b", 3**0.5))]
    order = make(sources=sources, batch_size=1000)
    share = 2**0.5 / (2**0.5 + 3**0.5)
    assert abs(order.count(0, 100) - 100_000 * share) < 2


def test_samples_come_in_blocks_of_shards() -> None:
    order = make(sources=[Source(name="a", shard_sizes=(10,) * 12, ratio=1.0)], batch_size=30, cache_shards=3)
    epoch = [{slot.sample // 10 for slot in order.step(step)} for step in range(4)]
    assert [len(shards) for shards in epoch] == [3, 3, 3, 3]
    assert set.union(*epoch) == set(range(12))


def test_a_source_keeps_its_order_when_another_is_added() -> None:
    alone = make(sources=SOURCES[:1])
    both = make()
    of_alone = [slot.sample for step in range(5) for slot in alone.step(step)]
    of_both = [slot.sample for step in range(20) for slot in both.step(step) if slot.source == 0]
    assert of_both[:40] == of_alone[:40]


def test_order_does_not_change_between_versions() -> None:
    assert permutation(8, "golden").tolist() == [1, 3, 2, 4, 5, 0, 7, 6]
    assert sorted(permutation(1000, "x").tolist()) == list(range(1000))
    assert permutation(1, "x").tolist() == [0]


def test_permutation_is_uniform() -> None:
    counts = Counter(tuple(permutation(3, f"{seed}").tolist()) for seed in range(6000))
    assert len(counts) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 20.5  # chi-squared, 5 degrees, p = 0.001


def test_a_late_step_of_ten_million_samples_is_fast(root: Path) -> None:
    program = """
import time
from anymodal.data.order import Order, Source
order = Order([Source(name="a", shard_sizes=(1000,) * 10_000)], batch_size=256, seed=0)
order.step(10**9)
times = []
for step in range(10**9 + 1, 10**9 + 200):
    started = time.perf_counter()
    order.step(step)
    times.append(time.perf_counter() - started)
print(sorted(times)[len(times) // 2])
"""  # in a process of its own, without the run-time checks of the tests
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": []}, "at least one source"),
        ({"sources": [SOURCES[0], SOURCES[0]]}, "names of their own"),
        ({"batch_size": 0}, "at least 1"),
        ({"cache_shards": 0}, "at least 1"),
    ],
)
def test_order_refuses(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("sizes", "ratio", "message"),
    [((), 1.0, "at least one sample"), ((0, 0), 1.0, "at least one sample"), ((3,), 0.0, "above 0"),
     ((3,), float("nan"), "above 0"), ((3, -1), 1.0, "at least one sample")],
)  # fmt: skip
def test_source_refuses(sizes: tuple[int, ...], ratio: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Source(name="a", shard_sizes=sizes, ratio=ratio)


def test_step_refuses_ranks_that_cannot_share() -> None:
    with pytest.raises(ValueError, match="multiple of the number of ranks, got 8 on 3"):
        make().step(0, rank=0, world=3)
    with pytest.raises(ValueError, match="rank 2, world 2"):
        make().step(0, rank=2, world=2)
