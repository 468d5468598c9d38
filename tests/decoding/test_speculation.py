"""Guesses change how many passes a picture takes, and nothing else."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import anymodal
from anymodal.decoding.config import EngineConfig
from anymodal.decoding.engine import Engine
from anymodal.decoding.sampler import Sampler

Make = Callable[..., Any]


@pytest.mark.parametrize("window", [1, 2, 5, 40])
@pytest.mark.parametrize("layout", ["fixed", "rows"])
def test_jacobi_writes_the_ids_of_plain_sampling(make_setup: Make, layout: str, window: int) -> None:
    setup = make_setup("decoupled", layout)
    options = [{}, {"guidance_scale": 3.0}, {"temperature": 0.0}, {"top_k": 4, "guidance_scale": 1.5}, {"top_p": 0.7}]
    requests = [setup.draw("a dog", seed, **how) for seed, how in enumerate(options)]
    requests += [setup.redraw(9, guidance_scale=2.0, image_guidance_scale=1.2)]
    assert setup.generate(requests, speculation="jacobi", window=window) == setup.generate(requests)


def test_a_trained_model_needs_few_passes() -> None:
    """The embedded model, in float64, where equal means equal."""
    pipe = anymodal.from_pretrained("emoji", device="cpu", dtype="float64")
    grid = pipe.prompter.grid(None, None)
    prompts = ("a rabbit", "two cats")
    requests = [pipe.prompter.image_request([text], None, pipe.generation.image, grid, 3) for text in prompts]
    plain = pipe.sampler
    fast = Sampler(pipe.model, EngineConfig(speculation="jacobi"))
    assert [ids.tolist() for ids in fast.generate(requests)] == [ids.tolist() for ids in plain.generate(requests)]
    assert plain.usage.passes == grid[0] * grid[1]
    assert 2 * fast.usage.passes < plain.usage.passes


def test_accepted_guesses_keep_the_distribution(make_setup: Make) -> None:
    """Chi-square of what stands at every place, and of neighbours together, against plain sampling."""
    setup = make_setup("decoupled", "fixed", torch.float64)
    one = setup.draw("a dog", 0, temperature=6.0, top_k=3, guidance_scale=1.5)
    count = 1500
    plain, guessed = (
        setup.generate([replace(one, seed=seed + start) for seed in range(count)], **how)
        for start, how in ((0, {}), (10**6, {"speculation": "accept", "window": 6}))
    )
    assert plain != guessed
    surprising = 0
    features = [lambda ids, i=i: ids[i] for i in range(12)] + [lambda ids, i=i: (ids[i], ids[i + 1]) for i in range(11)]
    for feature in features:
        first, second = Counter(map(feature, plain)), Counter(map(feature, guessed))
        common = [key for key in first if first[key] + second[key] >= 20]
        chi_square = sum((first[key] - second[key]) ** 2 / (first[key] + second[key]) for key in common)
        freedom = max(len(common) - 1, 1)
        surprising += chi_square > freedom + 3.1 * (2 * freedom) ** 0.5
    assert surprising <= 1


def test_rejected_guesses_are_counted(make_setup: Make) -> None:
    setup = make_setup("decoupled", "fixed")
    for speculation in ("jacobi", "accept"):
        engine = Engine(setup.model.eval(), EngineConfig(speculation=speculation, window=4))
        ticket = engine.submit(setup.draw("a dog", 1, temperature=9.0))
        while not ticket.done:
            engine.step()
        assert len(ticket.written) == 13
        assert 0 <= ticket.held < ticket.guessed
        assert ticket.passes == engine.passes
        assert ticket.passes + ticket.held >= 12


def test_speculation_needs_shapes_of_its_own() -> None:
    with pytest.raises(ValueError, match="batch_invariant computes one id a step"):
        EngineConfig(speculation="jacobi", batch_invariant=True)
