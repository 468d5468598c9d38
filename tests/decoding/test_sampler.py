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
    assert sampler.usage.passes == 3 * 12  # three batches; the closing id of a picture is forced and read by nobody


def test_what_cannot_run_is_said_before_anything_runs(make_setup: Callable[..., Any]) -> None:
    setup = make_setup()
    with pytest.raises(ValueError, match="shorten the prompt"):
        setup.generate([setup.draw("a", 1), setup.draw("x" * 99, 1)])


def test_what_is_compiled_is_compiled_once(make_setup: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = list[Any]()

    def compile_(function: Any, **_: Any) -> Any:
        compiled.append(function)
        return function

    monkeypatch.setattr("torch.compile", compile_)
    setup = make_setup()
    few, many = ([setup.draw("a dog", seed) for seed in range(count)] for count in (2, 5))
    sampler = Sampler(setup.model, EngineConfig(compile=True))
    for requests in (few, many, few):
        assert [ids.tolist() for ids in sampler.generate(requests)] == setup.generate(requests)
        assert sampler.usage.passes == 12
    assert len(compiled) == 1

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.generate(few, interrupt)
    sampler.generate(few)
    assert len(compiled) == 2, "what was left in the middle is not gone on with"
    setup.model.head.weight.data = setup.model.head.weight.data.clone()
    sampler.generate(few)
    assert len(compiled) == 3, "weights have moved"
    plain = Sampler(setup.model)
    plain.generate(few)
    assert plain._kept is None
