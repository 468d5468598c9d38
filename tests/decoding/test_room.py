"""The cache grows with what comes, and never shrinks."""

from collections.abc import Callable
from typing import Any

from anymodal.decoding.config import EngineConfig
from anymodal.decoding.room import ROUND, with_room


def test_a_cache_stays_where_it_is_large_enough(make_setup: Callable[..., Any]) -> None:
    setup = make_setup()
    how: dict[str, Any] = {"model": setup.model, "config": EngineConfig(), "bucket": 0}
    plain, guided = setup.draw("a dog", 1), setup.draw("a dog", 1, guidance_scale=2.0)
    first = with_room(None, [guided], taken=0, **how)
    assert (first.num_rows, first.capacity) == (2, ROUND)
    assert with_room(first, [plain], taken=1, **how) is first
    more = with_room(first, [plain, guided], taken=2, **how)
    assert (more.num_rows, more.capacity) == (5, ROUND)
    assert with_room(None, [setup.draw("x" * 60, 1)], taken=0, **how).capacity == 2 * ROUND


def test_batch_invariant_room_does_not_depend_on_the_batch(make_setup: Callable[..., Any]) -> None:
    setup = make_setup()
    how: dict[str, Any] = {"model": setup.model, "config": EngineConfig(batch_invariant=True, max_rows=7), "bucket": 0}
    first = with_room(None, [setup.draw("a dog", 1)], taken=0, **how)
    assert first.num_rows == 7
    assert first.bucket == first.capacity >= 96
