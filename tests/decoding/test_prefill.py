"""Prompts are read once, whatever they share, and no more of them at once than asked for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from anymodal.decoding.config import EngineConfig
from anymodal.decoding.engine import Engine
from anymodal.decoding.prefill import Prefix, PrefixStore, digests
from anymodal.model.cache import SavedRow
from anymodal.tokens.document import TokenSequence

ROW = SavedRow(torch.zeros(1), torch.zeros(1))


def prefix(*ids: int, looks: tuple[tuple[int, bytes], ...] = ()) -> Prefix:
    return Prefix(ids, looks, ROW)


def test_common_ids_are_counted_up_to_the_last() -> None:
    kept = prefix(1, 2, 3, 4)
    assert kept.common([1, 2, 3, 4, 5], [], 0) == 4
    assert kept.common([1, 2, 3, 4], [], 0) == 3  # the last is computed, to see what follows it
    assert kept.common([1, 9, 3], [], 0) == 1
    assert kept.common([9], [], 0) == 0


def test_pictures_are_shared_whole_and_equal() -> None:
    kept = prefix(1, 7, 7, 2, looks=((1, b"dog"),))
    same, other, none = [(1, b"dog")], [(1, b"cat")], list[tuple[int, bytes]]()
    assert kept.common([1, 7, 7, 2, 3], same, 2) == 4
    assert kept.common([1, 7, 7, 2, 3], other, 2) == 1
    assert kept.common([1, 7, 7, 2, 3], none, 2) == 1
    assert kept.common([1, 7, 7], same, 2) == 1  # half of the picture would be left


def test_the_longest_is_found_and_the_oldest_forgotten() -> None:
    store = PrefixStore(2)
    store.add(prefix(1, 2))
    store.add(prefix(1, 2, 3))
    found = store.longest([1, 2, 3, 4], [], 0)
    assert found is not None
    assert found[1] == 3
    assert store.longest([5, 6], [], 0) is None
    store.add(prefix(5))
    assert store.longest([1, 2, 3, 4], [], 0) is not None  # used last
    store.add(prefix(6))
    assert store.longest([5, 5], [], 0) is None


def test_digests_tell_pictures_apart() -> None:
    one, other = torch.zeros(3, 4, 4), torch.ones(3, 4, 4)

    def looking(picture: torch.Tensor) -> TokenSequence:
        return TokenSequence(torch.arange(3), torch.zeros(3, dtype=torch.bool), ((1, picture),))

    assert digests(looking(one)) == digests(looking(one.clone()))
    assert digests(looking(one)) != digests(looking(other))


@pytest.mark.parametrize("most", [5, 40, 64, 10_000])
def test_a_pass_reads_no_more_ids_than_asked(make_setup: Callable[..., Any], most: int) -> None:
    setup = make_setup()
    requests = [setup.draw("a dog " * (i % 4), i) for i in range(6)] + [setup.write("xyz" * i, i) for i in range(12)]
    expected = setup.generate(requests)
    engine = Engine(setup.model.eval(), EngineConfig(prefill_tokens=most))
    append, sizes = setup.model.append, list[int]()

    def watched(x: Tensor, *rest: Any) -> Tensor:
        sizes.append(x.shape[0] * x.shape[1])
        return append(x, *rest)

    setup.model.append = watched
    tickets = [engine.submit(request) for request in requests]
    engine.step()
    read = sizes[:-1]  # the last pass is the first step's
    assert max(read) <= most
    assert sum(read) >= engine.reader.read_tokens
    if most == 64:
        longest = max(len(request.prompt.ids) for request in requests)
        assert sum(read) < longest * engine.used_rows / 2, "not all are read as if they were as long as the longest"
        assert len(read) < engine.used_rows / 2, "short ones are read together"
    while not engine.idle:
        engine.step()
    assert [ticket.ids.tolist() for ticket in tickets] == expected
