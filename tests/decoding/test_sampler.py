"""All requests at once."""

from collections.abc import Callable
from typing import Any

import pytest

from anymodal.decoding.config import EngineConfig
from anymodal.decoding.sampler import Sampler


def test_results_come_in_the_order_of_the_requests(make_setup: Callable[..., Any]) -> None:
    setup = make_setup()
    requests = [setup.draw("a dog", seed) for seed in range(5)]
    sampler = Sampler(setup.model, EngineConfig(max_rows=2))
    steps: list[int] = []
    assert [ids.tolist() for ids in sampler.generate(requests, steps.append)] == setup.generate(requests)
    assert steps == list(range(len(steps)))
    assert sampler.passes == 3 * 12  # three batches; the closing id of a picture is forced and read by nobody


def test_what_cannot_run_is_said_before_anything_runs(make_setup: Callable[..., Any]) -> None:
    setup = make_setup()
    with pytest.raises(ValueError, match="shorten the prompt"):
        setup.generate([setup.draw("a", 1), setup.draw("x" * 99, 1)])
