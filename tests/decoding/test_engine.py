"""The sampler against a loop without cache or batch: in float64 the ids of a request are its own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from anymodal.decoding.choice import SamplingError, choose
from anymodal.decoding.config import EngineConfig
from anymodal.decoding.engine import Engine
from anymodal.decoding.request import Request, Ticket
from anymodal.decoding.sampler import Sampler
from anymodal.model.cache import KVCache
from anymodal.tokens.document import Codes

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def slow(make_setup: Make) -> Callable[[str, str], list[list[int]]]:
    """Give what every request of a setup must write."""

    @cache
    def write(heads: str, layout: str) -> list[list[int]]:
        setup = make_setup(heads, layout)
        return [setup.slowly(request) for request in setup.requests()]

    return write


@pytest.mark.parametrize("layout", ["fixed", "rows"])
@pytest.mark.parametrize("heads", ["shared", "decoupled"])
def test_ids_are_those_of_a_slow_loop_in_any_batch(make_setup: Make, slow: Any, heads: str, layout: str) -> None:
    setup, expected = make_setup(heads, layout), slow(heads, layout)
    requests = setup.requests()
    assert setup.generate(requests) == expected
    assert setup.generate(requests[::-1], prefill_tokens=5, lag=1) == expected[::-1]
    for request, ids in zip(requests, expected, strict=True):
        assert setup.generate([request]) == [ids]
        state = request.grammar.check(torch.tensor(ids))
        words = len(ids) if request.guides is None else sum(index < 280 for index in ids)
        assert bool(request.grammar.done[state]) or words >= min(request.max_new_tokens, 8)
    begun = [ids.count(setup.model.vocabulary.special("boi")) for ids in expected[-3:-1]]
    assert begun[0] == 1
    assert begun[1] > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_invariant_ids_are_equal_in_every_type(make_setup: Make, dtype: torch.dtype) -> None:
    setup = make_setup("decoupled", "fixed", dtype)
    requests = setup.requests()
    how = {"batch_invariant": True, "max_rows": 9}
    alone = [setup.generate([request], **how)[0] for request in requests]
    assert setup.generate(requests, **how) == alone
    assert setup.generate(requests[::-1], **how) == alone[::-1]


@pytest.mark.parametrize("head", ["image_logits", "text_logits"])
def test_batch_invariant_heads_have_one_shape(make_setup: Make, monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    """Whatever runs beside: products of other shapes may be computed in another order."""
    setup, shapes = make_setup("decoupled", "fixed", torch.float32), set[int]()
    plain = getattr(setup.model, head)

    def spy(hidden: torch.Tensor) -> torch.Tensor:
        shapes.add(len(hidden))
        result: torch.Tensor = plain(hidden)
        return result

    monkeypatch.setattr(setup.model, head, spy)
    for requests in (setup.requests()[:3], setup.requests()):
        setup.generate(requests, batch_invariant=True, max_rows=9)
    assert shapes == {9}


def spied(setup: Any, requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw together; return the codes of every request, and the logits that each was chosen by."""
    engine, seen = Engine(setup.model.eval()), list[torch.Tensor]()
    plain = engine.heads.code_logits

    def spy(*args: Any) -> torch.Tensor:
        seen.append(plain(*args).float())
        return seen[-1]

    engine.heads.code_logits = spy  # type: ignore[method-assign, assignment]
    tickets = [engine.submit(request) for request in requests]
    while not engine.idle:
        engine.step()
    codes = [setup.model.code_of[torch.tensor(ticket.written[:12])] for ticket in tickets]
    return torch.stack(codes), torch.stack(seen[:12], 1)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 0.25)])
def test_ids_first_differ_at_a_near_tie(make_setup: Make, dtype: torch.dtype, bound: float) -> None:
    """Up to the first other id, behind equal ids, logits of a batch lie within a bound of those alone.

    So the two ids that differ there are ahead of each other by no more than twice the bound.
    """
    setup = make_setup("decoupled", "fixed", dtype)
    texts = ["a dog", "a red apple", "apple", "two dogs and an apple", "x", "a dog and a dog", "what is it?", "dog dog"]
    requests = [setup.draw(text, 1, guidance_scale=2.0, temperature=0.0) for text in texts]
    ids, logits = spied(setup, requests)
    alone = [spied(setup, [request]) for request in requests]
    compared = 0
    for mine, scores, (own, own_scores) in zip(ids, logits, alone, strict=True):
        differs = (mine != own[0]).nonzero().flatten().tolist()
        same = differs[0] if differs else len(mine)
        compared += same
        distance = (scores[: same + 1] - own_scores[0][: same + 1]).abs().amax()
        assert float(distance) < bound
        if differs:
            chosen, other = mine[same], own[0, same]
            assert 0 <= float(scores[same, chosen] - scores[same, other]) <= 2 * bound
    assert compared >= len(texts) * 6, "runs agree long enough to tell"


def test_equal_prompts_are_read_once(make_setup: Make) -> None:
    setup = make_setup()
    prompt = setup.draw("a red apple", 0, guidance_scale=2.0)
    engine = Engine(setup.model.eval())
    for seed in range(6):
        engine.submit(replace(prompt, seed=seed))
    engine.step()
    assert engine.used_rows == 12
    assert prompt.unconditional is not None
    assert engine.reader.read_tokens == len(prompt.prompt.ids) + len(prompt.unconditional.ids)


def test_what_a_row_left_is_not_read_again(make_setup: Make, slow: Any) -> None:
    setup = make_setup("decoupled", "fixed")
    first = setup.write("what is it?", 2, look=True)
    engine = Engine(setup.model.eval(), kept=1)
    ticket = run(engine, first)
    read = engine.reader.read_tokens
    assert read == len(first.prompt.ids)
    follow = replace(first, prompt=ticket.sequence, seed=5)
    again = run(engine, follow)
    assert engine.reader.read_tokens == read + 1  # the last id alone was not read before
    assert [again.written] == setup.generate([follow])
    other = setup.write("what is it?", 2, look=False)
    assert [run(engine, other).written] == setup.generate([other])


def run(engine: Engine, request: Any) -> Ticket:
    ticket = engine.submit(request)
    while not ticket.done:
        engine.step()
    return ticket


@pytest.mark.parametrize("layout", ["fixed", "rows"])
def test_every_picture_is_a_whole_grid(make_setup: Make, layout: str) -> None:
    setup = make_setup("shared", layout)
    requests = [setup.draw("dog", seed, temperature=3.0, guidance_scale=1.0 + seed % 3) for seed in range(70)]
    steps: list[int] = []
    results = setup.sampler.generate(requests, steps.append)
    shapes = set()
    for ids in results:
        (part,) = setup.encoder.decode(ids)
        assert isinstance(part, Codes)
        shapes.add(tuple(part.picture.shape))  # type: ignore[union-attr]
    assert shapes == set(setup.layout.sizes)
    assert len({tuple(ids.tolist()) for ids in results}) == 70
    assert steps[0] == 0


def test_sampling_leaves_the_mode_as_it_was(make_setup: Make) -> None:
    setup = make_setup()
    setup.model.train()
    first = setup.sampler.generate([setup.write("a", 1)])
    assert setup.model.training
    assert first[0].dtype == torch.long
    assert setup.sampler.generate([]) == []
    assert setup.sampler.generate([replace(setup.write("a", 1), max_new_tokens=0), setup.write("a", 1)])[0].numel() == 0


def test_stops_behind_a_stop_id(make_setup: Make) -> None:
    setup = make_setup()
    request = setup.write("a", 1)
    (ids,) = setup.generate([request])
    (stopped,) = setup.generate([replace(request, stop_ids=frozenset({ids[3]}))])
    assert stopped == ids[: ids.index(ids[3]) + 1]


def test_a_cancelled_row_is_free_at_once(make_setup: Make) -> None:
    setup = make_setup()
    requests = [setup.draw("a dog", 1, guidance_scale=2.0), setup.draw("a", 2, guidance_scale=2.0), setup.write("a", 3)]
    for lag in (0, 1):
        engine = Engine(setup.model.eval(), EngineConfig(max_rows=4, lag=lag))
        first, second, third = (engine.submit(request) for request in requests)
        for _ in range(3):
            engine.step()
        assert engine.used_rows == 4
        assert third in engine.waiting
        engine.cancel(first)
        assert engine.used_rows == 2
        assert first.cancelled
        assert first.done
        engine.step()
        assert engine.used_rows == 3  # the one that waited came in
        engine.cancel(first)
        while not engine.idle:
            engine.step()
        assert [second.written, third.written] == setup.generate(requests[1:])
        waiting = [engine.submit(request) for request in requests]
        engine.cancel(waiting[2])
        assert len(engine.waiting) == 2


def test_what_does_not_fit_is_named_before_it_runs(make_setup: Make) -> None:
    setup = make_setup()
    with pytest.raises(ValueError, match=r"prompt has \d+ tokens and 13 are to follow, the context holds 96"):
        setup.generate([setup.draw("x" * 90, 0)])
    with pytest.raises(ValueError, match="the context holds 96; shorten the prompt"):
        long = setup.encoder.prompt_image(["x" * 90])
        setup.generate([replace(setup.draw("a", 0, guidance_scale=2.0), unconditional=long)])
    with pytest.raises(ValueError, match="takes 2 rows with its guidance, the sampler computes 1 at once"):
        setup.generate([setup.draw("a", 0, guidance_scale=2.0)], max_rows=1)
    with pytest.raises(ValueError, match="max_rows must be in"):
        EngineConfig(max_rows=0)
    misspelt = EngineConfig()
    object.__setattr__(misspelt, "speculation", "medusa")  # past the types, which tests check and users do not
    with pytest.raises(ValueError, match="speculation must be none, jacobi or accept, got 'medusa'"):
        misspelt.__post_init__()
    with pytest.raises(ValueError, match="lag must be 0 or 1"):
        EngineConfig(lag=2)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_broken_row_leaves_the_others_unharmed(make_setup: Make, scale: float, lag: int) -> None:
    setup = make_setup("shared", "fixed")
    requests = [
        setup.draw("a dog", 1, guidance_scale=scale),
        setup.draw("z", 2, guidance_scale=scale),
        setup.write("a", 3),
    ]
    expected = setup.generate(requests)
    poisoned = setup.encoder.text_tokenizer.encode("z")[0]
    weight = setup.model.embedding.weight
    kept = weight[poisoned].detach().clone()
    with torch.no_grad():
        weight[poisoned] = torch.nan
    try:
        engine = Engine(setup.model.eval(), EngineConfig(lag=lag))
        tickets = [engine.submit(request) for request in requests]
        while not engine.idle:
            engine.step()
        with pytest.raises(SamplingError, match="the logits of row 1 hold not numbers; check the weights"):
            setup.generate(requests)
    finally:
        with torch.no_grad():
            weight[poisoned] = kept
    assert isinstance(tickets[1].error, SamplingError)
    assert [tickets[0].written, tickets[2].written] == [expected[0], expected[2]]


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_hostile_logits_give_whole_pictures_or_errors(make_setup: Make, value: float) -> None:
    """A thousand seeds; some logits, or all, are no numbers."""
    setup = make_setup("decoupled", "fixed")
    torch.manual_seed(1)
    engine = Engine(setup.model.eval())
    plain = engine.heads.model.image_logits

    def hostile(hidden: torch.Tensor) -> torch.Tensor:
        logits = plain(hidden)
        return torch.where(torch.rand_like(logits[:, :1]) < 0.01, torch.full_like(logits, value), logits)

    setup.model.image_logits = hostile
    try:
        tickets = [engine.submit(setup.draw("a", seed)) for seed in range(1000)]
        while not engine.idle:
            engine.step()
    finally:
        del setup.model.image_logits
    failed = [ticket for ticket in tickets if ticket.error is not None]
    assert 20 < len(failed) < 500
    assert all(isinstance(ticket.error, SamplingError) for ticket in failed)
    for ticket in tickets:
        assert ticket.error is not None or len(ticket.written) == 13


def test_no_memory_is_an_error_and_harms_nobody(make_setup: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup()
    engine = Engine(setup.model.eval())
    running = engine.submit(setup.write("a", 3))
    engine.step()

    def full(*_: Any, **__: Any) -> KVCache:
        raise MemoryError("a cache takes more than there is (max_rows)")

    with monkeypatch.context() as patched:
        patched.setattr("anymodal.model.cache.KVCache.grown", full)
        late = engine.submit(setup.draw("a dog", 1, guidance_scale=2.0))
        while not running.done:
            engine.step()
    assert isinstance(late.error, MemoryError)
    assert late.done
    assert [running.written] == setup.generate([setup.write("a", 3)])


def test_what_there_is_room_for_goes_on_beside_what_there_is_none_for(
    make_setup: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, plain = make_setup(), Engine._make_room
    engine = Engine(setup.model.eval())

    def narrow(self: Engine, requests: Sequence[Request]) -> None:
        if any(request.num_rows > 1 for request in requests):
            raise MemoryError("a cache takes more than there is (max_rows)")
        plain(self, requests)

    monkeypatch.setattr(Engine, "_make_room", narrow)
    few, many, more = setup.write("a", 3), setup.draw("a dog", 1, guidance_scale=2.0), setup.draw("a", 4)
    tickets = [engine.submit(request) for request in (few, many, more)]
    while not engine.idle:
        engine.step()
    assert isinstance(tickets[1].error, MemoryError)
    assert [tickets[0].written, tickets[2].written] == setup.generate([few, more])


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
@pytest.mark.parametrize("at", [0, 1, 5, 11])
def test_guesses_behind_a_fault_do_not_hide_it(
    make_setup: Make, monkeypatch: pytest.MonkeyPatch, at: int, value: float
) -> None:
    """Nothing can be chosen as code number `at`, in a pass of one code and in one of many."""
    setup = make_setup()
    request = setup.draw("a dog", 3)

    def without(logits: torch.Tensor, *args: Any, positions: torch.Tensor, **named: Any) -> Any:
        broken = positions == len(request.prompt.ids) + at
        return choose(logits.masked_fill(broken[:, None], value), *args, positions=positions, **named)

    for module in ("heads", "speculation"):
        monkeypatch.setattr(f"anymodal.decoding.{module}.choose", without)
    found = []
    for speculation in ("none", "jacobi"):
        engine = Engine(setup.model.eval(), EngineConfig(speculation=speculation, window=6))
        found.append(engine.submit(request))
        while not engine.idle:
            engine.step()
    assert all(isinstance(ticket.error, SamplingError) for ticket in found)
    assert found[0].written == found[1].written
    assert len(found[0].written) == at


def test_codes_alone_ask_for_no_text_head(make_setup: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup()

    def unwanted(hidden: torch.Tensor) -> torch.Tensor:
        raise AssertionError("no row writes text")

    monkeypatch.setattr(setup.model, "text_logits", unwanted)
    assert len(setup.generate([setup.draw("a dog", 1, guidance_scale=2.0)])[0]) == 13
    assert isinstance(Sampler(setup.model), Sampler)
