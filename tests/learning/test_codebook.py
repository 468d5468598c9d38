"""How much of a codebook is in use."""

import math

import pytest
import torch

from anymodal.learning.codebook import CodebookUsage


def usage(*steps: list[int]) -> CodebookUsage:
    made = CodebookUsage(len(steps[0]))
    for step in steps:
        made.add(torch.tensor(step))
    return made


def test_perplexity_is_that_of_the_definition() -> None:
    assert usage([10, 10, 10, 10]).perplexity == pytest.approx(4)
    assert usage([10, 0, 0, 0]).perplexity == pytest.approx(1)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert usage([75, 25]).perplexity == pytest.approx(math.exp(entropy), abs=1e-5)


def test_a_codebook_collapses_by_perplexity_or_by_dead_codes() -> None:
    even = [10] * 64
    assert not usage(even).collapsed
    assert usage([10_000] + [105] * 63).dead.sum() == 63 * 0
    skewed = usage([1_000_000, *[20_000] * 31, *[200] * 32])
    assert skewed.collapsed
    assert float(skewed.dead.float().mean()) == 0.5
    peaked = usage([100_000, *[1_600] * 63])
    assert not bool(peaked.dead.any())
    assert peaked.collapsed == (peaked.perplexity < 6.4)
    assert not usage([1] + [0] * 63).collapsed, "one code of one picture tells nothing yet"


def test_what_was_used_long_ago_is_forgotten() -> None:
    made = usage(*[[50, 50]] * 3, *[[100, 0]] * 400)
    assert made.dead.tolist() == [False, True]
    assert made.counts.sum() == pytest.approx(100 * 50, rel=1e-2), "the memory is bounded"


def test_a_step_with_few_codes_is_remembered_longer() -> None:
    made, random = CodebookUsage(1024), torch.Generator().manual_seed(0)
    for _ in range(2000):
        made.add(torch.bincount(torch.randint(1024, (64,), generator=random), minlength=1024))
    assert made.settled
    assert not made.collapsed
    assert float(made.dead.float().mean()) < 0.01


def test_counts_travel_with_a_checkpoint() -> None:
    again = CodebookUsage(3)
    again.load_state_dict(usage([5, 0, 2]).state_dict())
    assert again.counts.tolist() == [5, 0, 2]
