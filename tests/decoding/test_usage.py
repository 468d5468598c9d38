"""What sampling cost is counted a request."""

from collections.abc import Callable
from typing import Any

import pytest

from anymodal.decoding.config import EngineConfig
from anymodal.decoding.sampler import Sampler
from anymodal.decoding.usage import Usage


def test_a_report_is_one_line() -> None:
    usage = Usage(tokens=260, seconds=0.5, rows=4)
    assert usage.report("image") == "4 images, 260 tokens in 0.50 s (520 tokens/s)\n"
    assert usage.report("answer", 1).startswith("1 answer,")
    assert Usage(tokens=0, seconds=0.0).tokens_per_second == 0
    guessed = Usage(tokens=130, seconds=0.5, rows=2, passes=20, row_passes=33, guessed=200, held=91)
    assert guessed.report("image").endswith(" (260 tokens/s), 16.5 passes a request, 46% of guesses held\n")


@pytest.mark.parametrize("layout", ["fixed", "rows"])
@pytest.mark.parametrize("speculation", ["none", "jacobi", "accept"])
def test_every_id_of_a_picture_is_a_pass_or_a_guess_that_held(
    make_setup: Callable[..., Any], speculation: Any, layout: str
) -> None:
    setup = make_setup("decoupled", layout)
    requests = [setup.draw("a dog", seed, temperature=0.3, guidance_scale=1.0 + seed) for seed in range(5)]
    sampler = Sampler(setup.model, EngineConfig(speculation=speculation, window=5, max_rows=6))
    ids = sampler.generate(requests)
    usage = sampler.usage
    assert usage.rows == 5
    assert usage.tokens == sum(map(len, ids))
    assert usage.seconds > 0
    assert usage.passes < usage.row_passes, "requests share passes"
    assert usage.held <= usage.guessed
    unread = usage.tokens - usage.row_passes - usage.held  # nobody reads the last id of a picture
    assert 0 <= unread <= 5
    if speculation == "none":
        assert (usage.guessed, usage.held_share, unread) == (0, 0, 5)
    else:
        assert usage.held > 0


def test_guesses_behind_the_end_of_a_picture_do_not_count(make_setup: Callable[..., Any]) -> None:
    setup = make_setup("decoupled", "fixed")
    sampler = Sampler(setup.model, EngineConfig(speculation="jacobi", window=40))
    sampler.generate([setup.draw("a dog", 1, temperature=0.0)])
    alone = sampler.usage
    assert 12 <= alone.guessed <= 12 * alone.passes
    sampler.generate([setup.draw("a dog", 1, temperature=0.0)] * 2)
    assert (sampler.usage.guessed, sampler.usage.held) == (2 * alone.guessed, 2 * alone.held)
