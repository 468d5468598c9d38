"""A compiled step gives what a plain one gives."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anymodal.decoding import forward
from anymodal.decoding.choice import SamplingError
from anymodal.decoding.config import EngineConfig
from anymodal.decoding.engine import Engine
from anymodal.decoding.forward import BUCKET, Forward
from anymodal.decoding.weights import lighten
from anymodal.model.cache import KVCache


def test_compiled_ids_are_those_of_plain_steps(toy: Any, tmp_path: Path) -> None:
    """In a process of its own: the checks of shapes that tests switch on do not compile."""
    toy.parts(heads="decoupled").save(tmp_path / "model")
    script = (
        "import sys, anymodal\n"
        "from anymodal.decoding.config import EngineConfig\n"
        "drawn = []\n"
        "for compiled in (False, True):\n"
        "    engine = EngineConfig(compile=compiled)\n"
        "    pipe = anymodal.from_pretrained(sys.argv[1], dtype='float64', engine=engine)\n"
        "    images = pipe.generate_image(['a dog', 'a cat'], guidance_scale=2.0)\n"
        "    drawn.append([image.tobytes() for image in images])\n"
        "assert drawn[0] == drawn[1]\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "model")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_compiled_steps_see_buckets_of_the_cache(make_setup: Callable[..., Any]) -> None:
    engine = Engine(make_setup().model.eval(), EngineConfig(compile=True))
    assert engine.forward.bucket == BUCKET


@pytest.mark.usefixtures("compiler")
def test_a_kernel_that_passes_all_blocks_is_not_compiled(make_setup: Callable[..., Any]) -> None:
    model = copy.deepcopy(make_setup().model).float().eval()
    compiled = Engine(model, EngineConfig(compile=True)).forward
    lighten(model, "float32", native=True)
    native = Engine(model, EngineConfig(compile=True)).forward
    assert (compiled._append == compiled._plain, native._append == native._plain) == (False, True)


class Captures:
    """Stands in for CUDA graphs: what was captured is computed again into the same place, from the same inputs."""

    def __init__(self) -> None:
        self.count = self.replays = 0

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.count += 1
        result = compute()

        def replay() -> None:
            self.replays += 1
            result.copy_(compute())

        return result, replay


def capturing(model: Any, **config: Any) -> tuple[Engine, Captures]:
    engine, captures = Engine(model, EngineConfig(compile=True, lag=1, **config)), Captures()
    engine.forward.capture = captures
    return engine, captures


def test_captured_steps_write_the_same_ids_and_are_captured_once(
    make_setup: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "BUCKET", 16)
    setup = make_setup("decoupled", "rows")
    setup.model.eval()
    requests = [request for request in setup.requests() if request.bounded]
    expected = setup.generate(requests)
    engine, captures = capturing(setup.model)
    seen = set[tuple[int, ...]]()
    tickets = [engine.submit(request) for request in requests[:2]]
    for request in (*requests[2:], None, None):
        for _ in range(3):  # others enter and end between steps
            engine.step()
            seen |= set(engine.forward._graphs)
        tickets += [] if request is None else [engine.submit(request)]
    while not engine.idle:
        engine.step()
        seen |= set(engine.forward._graphs)
    assert [ticket.ids.tolist() for ticket in tickets] == expected
    assert captures.replays == engine.passes
    assert captures.count == len(seen) < engine.passes
    assert {key[1] % 16 for key in seen} == {0}
    assert len({key[1] for key in seen}) > 1, "longer rows see another bucket"
    assert len({address for *_, address in engine.forward._graphs}) == 1, "graphs of a cache that has moved are dropped"
    again = [engine.submit(request) for request in requests[:2]]
    while not engine.idle:
        engine.step()
    assert [ticket.ids.tolist() for ticket in again] == expected[:2]
    assert len({address for *_, address in engine.forward._graphs}) == 1


@pytest.mark.parametrize("heads", ["shared", "decoupled"])
def test_captured_steps_wait_for_documents_that_may_begin_pictures(
    make_setup: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, heads: str
) -> None:
    """Their pictures take and free rows; what runs beside them goes ahead of the host again when they have ended."""
    monkeypatch.setattr(forward, "BUCKET", 16)
    setup = make_setup(heads, "fixed")
    setup.model.eval()
    requests = setup.requests()
    requests = [*(each for each in requests if each.guides is not None), *requests[:4]]
    expected = setup.generate(requests)
    engine, captures = capturing(setup.model)
    tickets, waits = [engine.submit(request) for request in requests], list[bool]()
    while not engine.idle:
        if len(waits) == 3:
            tickets.append(engine.submit(requests[0]))
        if len(waits) == 9:
            tickets.append(engine.submit(requests[2]))
        engine.step()
        waits.append(engine._in_lockstep())
    tickets.append(engine.submit(requests[2]))
    while not engine.idle:
        engine.step()
        waits.append(engine._in_lockstep())
    assert [ticket.ids.tolist() for ticket in tickets] == [*expected, expected[0], expected[2], expected[2]]
    assert waits[0]
    assert not waits[-1]
    assert captures.count < captures.replays
    assert engine.used_rows == 0


@pytest.mark.parametrize("heads", ["shared", "decoupled"])
def test_documents_go_ahead_behind_their_last_picture(make_setup: Callable[..., Any], heads: str) -> None:
    setup = make_setup(heads, "fixed")
    setup.model.eval()
    none, one = (setup.illustrate("a dog", 10, max_new_tokens=16, max_images=count) for count in (0, 1))
    expected = setup.generate([none, one])
    assert [ids.count(setup.model.vocabulary.special("boi")) for ids in expected] == [0, 1]
    for request, ids in zip((none, one), expected, strict=True):
        engine, _ = capturing(setup.model)
        ticket, waited = engine.submit(request), list[bool]()
        while not engine.idle:
            engine.step()
            waited += [engine._in_lockstep()] if engine.lives else []
        assert ticket.written == ids
        end = ids.index(setup.model.vocabulary.special("eoi")) if request is one else 0
        assert waited[:end] == [True] * end
        assert not any(waited[end:])
        assert len(waited) > end


def test_captured_row_without_numbers_ends_a_step_late_and_alone(make_setup: Callable[..., Any]) -> None:
    setup = make_setup("decoupled", "fixed")
    requests = [setup.draw(text, seed) for seed, text in enumerate(("a dog", "apple", "dog"))]
    expected = setup.generate(requests)
    engine, _ = capturing(setup.model.eval())
    tickets = [engine.submit(request) for request in requests]
    engine.step()
    engine.step()
    engine.hidden = engine.hidden.clone()
    engine.hidden[engine.lives[1].slots[0]] = torch.nan
    engine.step()
    assert tickets[1].error is None, "the host is one step behind"
    engine.step()
    assert isinstance(tickets[1].error, SamplingError)
    while not engine.idle:
        engine.step()
    assert [tickets[i].ids.tolist() for i in (0, 2)] == [expected[0], expected[2]]


def test_rows_out_of_use_change_nothing(make_setup: Callable[..., Any]) -> None:
    model = make_setup().model.eval()
    caches = [
        KVCache(model.config.transformer, num_rows=rows, capacity=8, dtype=torch.float64, bucket=bucket)
        for rows, bucket in ((2, 0), (5, 8))
    ]
    plain, fixed = Forward(model, EngineConfig()), Forward(model, EngineConfig(batch_invariant=True))
    for ids in (torch.tensor([3, 9]), torch.tensor([7, 1])):
        with torch.inference_mode():
            expected, got = (each(ids, cache, 2) for each, cache in zip((plain, fixed), caches, strict=True))
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    assert [caches[1].filled(row) for row in range(5)] == [2, 2, 0, 0, 0]
