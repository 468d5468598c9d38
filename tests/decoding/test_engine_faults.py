"""Whatever fails within a step, every request ends: the others with their own ids, or with an error that says why."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from anymodal.decoding.choice import SamplingError
from anymodal.decoding.config import EngineConfig
from anymodal.decoding.engine import Engine
from anymodal.decoding.request import BrokenOffError, Guides, Request, Ticket
from anymodal.decoding.sampler import Sampler
from anymodal.tokens.document import TokenSequence

Make = Callable[..., Any]


def finish(engine: Engine) -> None:
    while not engine.idle:
        engine.step()
    assert engine.used_rows == 0


def reading_fails(monkeypatch: pytest.MonkeyPatch, setup: Any, error: BaseException, *, times: int = 99) -> None:
    """Let reading a prompt fail behind its first piece, for prompts with the letter z."""
    plain, letter = setup.model.append, setup.encoder.text_tokenizer.encode("z")[0]
    left = [times]

    def append(x: torch.Tensor, ids: torch.Tensor, step: Any) -> torch.Tensor:
        hidden: torch.Tensor = plain(x, ids, step)
        if bool((ids == letter).any()) and ids.shape[1] > 1 and left[0]:
            left[0] -= 1
            step.keys.fill_(torch.nan)
            raise error
        return hidden

    monkeypatch.setattr(setup.model, "append", append)


@pytest.mark.parametrize("kept", [0, 2])
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError("full"), ValueError("bad pixels")])
def test_a_prompt_that_cannot_be_read_harms_nobody(
    make_setup: Make, monkeypatch: pytest.MonkeyPatch, error: Exception, kept: int
) -> None:
    setup = make_setup("shared", "fixed")
    good = [setup.draw("a dog", 1, guidance_scale=2.0), setup.write("a", 3), setup.draw("a", 4)]
    bad = setup.draw("z", 2, guidance_scale=2.0)
    expected = setup.generate([*good, bad])
    engine = Engine(setup.model.eval(), EngineConfig(prefill_tokens=4), kept=kept)
    with monkeypatch.context() as patched:
        reading_fails(patched, setup, error)
        running = engine.submit(good[0])
        engine.step()
        tickets = [engine.submit(request) for request in (bad, *good[1:])]
        finish(engine)
    assert tickets[0].error is error
    assert tickets[0].done
    assert not tickets[0].written
    later = engine.submit(bad)
    finish(engine)
    assert [ticket.written for ticket in (running, *tickets[1:], later)] == expected


def test_an_interrupted_prompt_waits_and_what_ran_is_closed(make_setup: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup("shared", "fixed")
    good, bad = setup.write("a", 3), setup.draw("z", 2, guidance_scale=2.0)
    expected = setup.generate([good, bad])
    engine = Engine(setup.model.eval())
    with monkeypatch.context() as patched:
        reading_fails(patched, setup, KeyboardInterrupt("ctrl-c"), times=1)
        running = engine.submit(good)
        engine.step()
        late = engine.submit(bad)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
        assert engine.used_rows == 0
        assert running.done
        assert isinstance(running.error, BrokenOffError)
        assert "KeyboardInterrupt (ctrl-c); submit the request again" in str(running.error)
        assert isinstance(running.error.__cause__, KeyboardInterrupt)
        again = engine.submit(good)
        finish(engine)
    assert [again.written, late.written] == expected


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("speculation", ["none", "jacobi"])
def test_a_step_that_fails_closes_what_ran(
    make_setup: Make, monkeypatch: pytest.MonkeyPatch, lag: int, speculation: Any
) -> None:
    setup = make_setup("decoupled", "fixed")
    requests = [setup.draw("a dog", 1, guidance_scale=2.0), setup.draw("a", 4), setup.write("a", 3)]
    expected = setup.generate(requests)
    engine = Engine(setup.model.eval(), EngineConfig(max_rows=3, lag=lag, speculation=speculation))
    tickets = [engine.submit(request) for request in requests]
    engine.step()
    with monkeypatch.context() as patched:
        patched.setattr(setup.model, "append", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    assert [type(ticket.error) for ticket in tickets] == [BrokenOffError, BrokenOffError, type(None)]
    assert [ticket.done for ticket in tickets] == [True, True, False]
    assert engine.used_rows == 0
    tickets += [engine.submit(request) for request in requests[:2]]
    finish(engine)
    assert [ticket.written for ticket in tickets[2:]] == [expected[2], *expected[:2]]


def test_a_picture_whose_guidance_fails_ends_alone(make_setup: Make) -> None:
    setup = make_setup("shared", "fixed")
    fine = setup.illustrate("a red dog", 12, by_image=1.5)

    def guides(_: TokenSequence) -> Guides:
        raise ValueError("no such prompt")

    requests: list[Request] = [fine, replace(fine, guides=guides, seed=10), setup.write("a", 3)]
    expected = setup.generate([fine, setup.write("a", 3)])
    engine = Engine(setup.model.eval())
    tickets: list[Ticket] = [engine.submit(request) for request in requests]
    finish(engine)
    assert str(tickets[1].error) == "no such prompt"
    assert tickets[1].written[-1] == engine.heads.boi
    assert [tickets[0].written, tickets[2].written] == expected


def test_a_grammar_of_another_vocabulary_comes_in_alone(make_setup: Make) -> None:
    setup = make_setup("shared", "fixed")
    good = setup.write("a", 3)
    small = replace(good.grammar, class_of=good.grammar.class_of[:-1])
    engine = Engine(setup.model.eval())
    tickets = [engine.submit(request) for request in (good, replace(good, grammar=small), setup.draw("a", 4))]
    finish(engine)
    assert "must share a vocabulary" in str(tickets[1].error)
    assert [tickets[0].written, tickets[2].written] == setup.generate([good, setup.draw("a", 4)])


def test_a_sampler_goes_on_behind_a_failure(make_setup: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup("shared", "fixed")
    sampler, bad = Sampler(setup.model), setup.draw("z", 2)
    (expected,) = setup.generate([bad])
    for error in (KeyboardInterrupt(), RuntimeError("out of memory")):
        with monkeypatch.context() as patched:
            reading_fails(patched, setup, error)
            with pytest.raises(type(error)):
                sampler.generate([bad, setup.write("a", 3)])
        assert sampler.generate([bad])[0].tolist() == expected


def dead_end(request: Request, ids: list[int]) -> Request:
    """Let nothing come behind these ids, which the grammar of the request allows."""
    grammar = request.grammar
    at = grammar.check(torch.tensor(ids, dtype=torch.long))
    allowed = grammar.allowed.clone()
    allowed[at] = False
    return replace(request, grammar=replace(grammar, allowed=allowed))


@pytest.mark.parametrize("at", [0, 1, 5, 11, 12])
@pytest.mark.parametrize("how", [{"lag": 0}, {"lag": 1}, {"speculation": "jacobi"}, {"speculation": "accept"}])
def test_a_picture_with_no_legal_id_ends_there_and_alone(make_setup: Make, at: int, how: dict[str, Any]) -> None:
    setup = make_setup("decoupled", "fixed")
    good = [setup.draw("a dog", 1, guidance_scale=2.0), setup.draw("a", 4)]
    plain = setup.draw("dog", 2, guidance_scale=3.0)
    expected, (whole,) = setup.generate(good, **how), setup.generate([plain], **how)
    engine = Engine(setup.model.eval(), EngineConfig(window=4, **how))
    tickets = [engine.submit(request) for request in (good[0], dead_end(plain, whole[:at]), good[1])]
    finish(engine)
    assert isinstance(tickets[1].error, SamplingError)
    assert "hold no finite number among the allowed ids" in str(tickets[1].error)
    assert len(tickets[1].written) == at
    assert [len(ticket.written) for ticket in tickets[::2]] == [13, 13]
    if "accept" not in how.values():  # whose ids depend on what runs beside
        assert tickets[1].written == whole[:at]
        assert [tickets[0].written, tickets[2].written] == expected


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("heads", ["shared", "decoupled"])
def test_text_with_no_legal_id_ends_there_and_alone(make_setup: Make, heads: str, lag: int) -> None:
    setup = make_setup(heads, "rows")
    good = [setup.write("a", 3), setup.draw("a", 4, guidance_scale=2.0)]
    illustrated = setup.illustrate("a red dog", 12)
    expected = setup.generate([*good, illustrated])
    engine = Engine(setup.model.eval(), EngineConfig(lag=lag))
    mute, stuck = dead_end(good[0], []), dead_end(illustrated, expected[2][: expected[2].index(engine.heads.boi) + 3])
    tickets = [engine.submit(request) for request in (good[0], mute, stuck, good[1])]
    finish(engine)
    assert [type(ticket.error) for ticket in tickets] == [type(None), SamplingError, SamplingError, type(None)]
    assert not tickets[1].written
    assert tickets[2].written == expected[2][: len(tickets[2].written)]
    assert tickets[2].written[-3] == engine.heads.boi
    assert [tickets[0].written, tickets[3].written] == expected[:2]


def test_a_picture_that_must_begin_and_may_not_is_no_legal_id(make_setup: Make) -> None:
    """Such a grammar leaves no choice, and yet a picture more would overflow the context or what was asked for."""
    setup = make_setup("shared", "fixed")
    request = setup.illustrate("a dog", 10, max_images=1)
    grammar, boi = request.grammar, setup.model.vocabulary.special("boi")
    allowed = grammar.allowed.clone()
    allowed[grammar.start] = False
    allowed[grammar.start, grammar.class_of[boi]] = True
    one = replace(request, grammar=replace(grammar, allowed=allowed))
    engine = Engine(setup.model.eval())
    tickets = [engine.submit(each) for each in (one, replace(one, max_images=None), setup.write("a", 3))]
    finish(engine)
    assert all(isinstance(ticket.error, SamplingError) for ticket in tickets[:2])
    assert tickets[0].written.count(boi) == 1
    assert tickets[1].written.count(boi) == (96 - len(request.prompt.ids)) // 14
    assert [tickets[2].written] == setup.generate([setup.write("a", 3)])
