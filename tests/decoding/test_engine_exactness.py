"""Requests of every make in every batch: in float64 the ids of a request are its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings

from anymodal.decoding.config import EngineConfig, SamplingConfig
from anymodal.decoding.engine import Engine
from anymodal.decoding.request import Request, Ticket
from anymodal.tokens.document import Codes, Look
from anymodal.tokens.grammar import compile_grammar

Make = Callable[..., Any]
SEEN = torch.linspace(-1, 1, 768).view(3, 16, 16)
PICTURES: dict[str, Look | Codes] = {"ramp": Look(SEEN), "fall": Look(-SEEN)}


@dataclass(frozen=True)
class Wish:
    """What hypothesis asks for; equal wishes are equal requests."""

    heads: str
    layout: str
    want: str
    parts: tuple[str, ...]
    grid: int | None
    negative: str
    image: SamplingConfig
    text: SamplingConfig
    seed: int
    max_new_tokens: int
    max_images: int | None

    def request(self, setup: Any) -> Request:
        """Ask for it."""
        rows, columns = setup.layout.sizes[-1]
        pictures = {**PICTURES, "codes": Codes(torch.arange(rows * columns).view(rows, columns) % 16)}
        parts = [pictures.get(part, part) for part in self.parts]
        if self.want == "image":
            size = None if self.grid is None else setup.layout.sizes[self.grid]
            prompt = setup.encoder.prompt_image(parts, size=size)
            return Request(
                prompt=prompt,
                unconditional=setup.encoder.prompt_image([self.negative], size=size),
                pictures=setup.encoder.pictures_alone(prompt),
                grammar=grammar(setup, size),
                image=self.image,
                seed=self.seed,
            )
        asked = setup.illustrate("", self.seed, max_images=self.max_images)
        prompt = setup.encoder.encode(parts, complete=False)
        asked = replace(asked, prompt=prompt, image=self.image, max_new_tokens=self.max_new_tokens)
        if self.want == "any":  # hot, so that pictures begin
            return replace(asked, text=SamplingConfig(temperature=9.0))
        return replace(asked, text=self.text, grammar=setup.grammar("text"), guides=None, picture_tokens=0)


@cache
def grammar(setup: Any, size: tuple[int, int] | None) -> Any:
    if size is None:
        return setup.grammar("image")
    tokenizer = setup.encoder.text_tokenizer
    return compile_grammar(setup.model.vocabulary, setup.layout, "image", text_tokenizer=tokenizer, size=size)


def samplings() -> st.SearchStrategy[SamplingConfig]:
    scale = st.one_of(st.sampled_from([1.0, 0.0]), st.floats(-1, 5))
    return st.builds(
        SamplingConfig,
        temperature=st.one_of(st.just(0.0), st.floats(0.1, 9)),
        top_k=st.sampled_from([0, 0, 1, 5, 400]),
        top_p=st.one_of(st.just(1.0), st.floats(0.05, 1)),
        guidance_scale=scale,
        image_guidance_scale=st.one_of(st.none(), scale),
        guidance_interval=st.one_of(
            st.just((0.0, 1.0)), st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda pair: (min(pair), max(pair)))
        ),
    )


@st.composite
def wishes(draw: st.DrawFn, heads: str) -> Wish:
    """Make up a request; words and pictures repeat, so that prompts begin alike."""
    want = draw(st.sampled_from(["image", "image", "text", "any"]))
    layout = draw(st.sampled_from(["fixed", "rows"]))
    part = st.one_of(
        st.sampled_from(["a dog", "a red apple", "", "ramp", "fall", "codes"]), st.text("adeglopr ", max_size=20)
    )
    return Wish(
        heads=heads,
        layout=layout,
        want=want,
        parts=tuple(draw(st.lists(part, min_size=1, max_size=3))),
        grid=draw(st.sampled_from([None, 0, 1, 2])) if want == "image" and layout == "rows" else None,
        negative=draw(st.sampled_from(["", "", "a dog", "an apple and a dog"])) if want == "image" else "",
        image=draw(samplings()),
        text=draw(samplings()),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        max_new_tokens=draw(st.integers(1, 20)),
        max_images=draw(st.sampled_from([None, 0, 1, 2])) if want == "any" else None,
    )


@pytest.fixture(scope="module")
def alone(make_setup: Make) -> Callable[[Wish], list[int]]:
    """Give what the plain sampler writes for a wish in its only row, once."""

    @cache
    def write(wish: Wish) -> list[int]:
        setup = make_setup(wish.heads, wish.layout)
        (ids,) = setup.generate([wish.request(setup)])
        return list(ids)

    return write


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_the_plain_sampler_is_a_slow_loop(make_setup: Make, alone: Any, data: st.DataObject) -> None:
    wish = data.draw(wishes(data.draw(st.sampled_from(["shared", "decoupled"]))))
    setup = make_setup(wish.heads, wish.layout)
    request = wish.request(setup)
    assume(fits(request))
    assert alone(wish) == setup.slowly(request)


def fits(request: Request) -> bool:
    try:
        return request.budget(96) > 0
    except ValueError:
        return False


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_whatever_runs_beside_changes_nothing(make_setup: Make, alone: Any, data: st.DataObject) -> None:
    """Requests of both layouts come while others run, some are taken back, and guesses or pieces are of any size."""
    heads = data.draw(st.sampled_from(["shared", "decoupled"]))
    wanted = data.draw(st.lists(wishes(heads), min_size=1, max_size=6))
    wanted += data.draw(st.lists(st.sampled_from(wanted), max_size=3))
    requests = [wish.request(make_setup(heads, wish.layout)) for wish in wanted]
    assume(all(map(fits, requests)))
    config = EngineConfig(
        max_rows=data.draw(st.integers(3, 20)),
        prefill_tokens=data.draw(st.sampled_from([1, 3, 7, 100])),
        lag=data.draw(st.sampled_from([0, 1])),
        speculation=data.draw(st.sampled_from(["none", "jacobi"])),
        window=data.draw(st.integers(1, 14)),
    )
    engine = Engine(make_setup(heads, "fixed").model.eval(), config, kept=data.draw(st.sampled_from([0, 2])))
    tickets: list[Ticket] = []
    for request in requests:
        tickets.append(engine.submit(request))
        for _ in range(data.draw(st.integers(0, 12))):
            engine.step()
        if data.draw(st.integers(0, 9)) == 0:
            engine.cancel(data.draw(st.sampled_from(tickets)))
    while not engine.idle:
        engine.step()
    for ticket, wish in zip(tickets, wanted, strict=True):
        expected = alone(wish)
        assert ticket.done
        assert ticket.error is None
        assert ticket.written == (expected[: len(ticket.written)] if ticket.cancelled else expected)
    assert engine.used_rows == 0
