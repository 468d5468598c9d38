"""Choosing an id, against the definitions written as loops."""

from typing import Any

import pytest
import torch
from torch import Tensor

from anymodal.decoding.choice import NOT_NUMBERS, NOTHING_ALLOWED, Choice, Settings, choose, guide
from anymodal.decoding.config import SamplingConfig
from anymodal.decoding.noise import gumbel


def pick(logits: Tensor, config: SamplingConfig | list[SamplingConfig], allowed: Tensor | None = None) -> Tensor:
    choice = choosing(logits, config, allowed)
    assert not choice.faults.any()
    return choice.ids


def choosing(logits: Tensor, config: SamplingConfig | list[SamplingConfig], allowed: Tensor | None = None) -> Choice:
    rows = len(logits)
    settings = Settings.of(config if isinstance(config, list) else [config] * rows)
    positions = torch.full((rows,), 5)
    ids = torch.arange(logits.shape[1])
    return choose(logits, settings, ids=ids, seeds=torch.arange(rows), positions=positions, allowed=allowed)


def kept(probabilities: list[float], config: SamplingConfig) -> set[int]:
    """Keep the k most likely ids, then the fewest of them that reach p."""
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[: config.top_k or None]
    total, reached, chosen = sum(probabilities[i] for i in order), 0.0, set()
    for i in order:
        if reached >= config.top_p:
            break
        chosen.add(i)
        reached += probabilities[i] / total
    return chosen


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 3}, {"top_p": 0.6}, {"top_k": 4, "top_p": 0.8}, {"temperature": 0.5, "top_p": 0.9}, {"top_k": 99}],
)
def test_equals_a_plain_reference(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = SamplingConfig(**options)
    logits = torch.randn(40, 9, dtype=torch.float64) * 2
    allowed = torch.rand(40, 9) < 0.8
    allowed[:, 0] = True
    ids = pick(logits, config, allowed=allowed)
    for row in range(40):
        scaled = (logits[row] / config.temperature).masked_fill(~allowed[row], -torch.inf)
        noise = gumbel(torch.tensor([row]), torch.tensor([5]), torch.arange(9))[0]
        candidates = kept(scaled.softmax(0).tolist(), config) & set(torch.nonzero(allowed[row]).flatten().tolist())
        assert int(ids[row]) == max(candidates, key=lambda i: float(scaled[i] + noise[i]))


def test_frequencies_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0, 0.5])
    count = 20000
    ids = pick(logits.expand(count, -1), SamplingConfig(temperature=1.5))
    expected = (logits / 1.5).softmax(0) * count
    chi_square = float(((torch.bincount(ids, minlength=6) - expected) ** 2 / expected).sum())
    assert chi_square < 20.5  # 5 degrees of freedom, 1 in 1000


def test_temperature_zero_takes_the_most_likely() -> None:
    logits = torch.randn(10, 7)
    assert torch.equal(pick(logits, SamplingConfig(temperature=0.0)), logits.argmax(-1))
    mixed = [SamplingConfig(temperature=0.0), SamplingConfig(top_k=2)] * 5
    ids = pick(logits, mixed)
    assert torch.equal(ids[::2], logits.argmax(-1)[::2])
    assert torch.equal(ids[1::2], pick(logits, SamplingConfig(top_k=2))[1::2])


def test_guidance_pushes_away() -> None:
    conditional, unconditional = torch.tensor([[1.0, 2.0]] * 3), torch.tensor([[0.5, 3.0]] * 3)
    pushed = guide(conditional, unconditional, torch.tensor([0.0, 1.0, 4.0]))
    assert pushed.tolist() == [[0.5, 3.0], [1.0, 2.0], [2.5, -1.0]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_unusable_logits_are_told_a_row(value: float) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = value
    assert choosing(logits, SamplingConfig()).faults.tolist() == [0, NOT_NUMBERS, 0]
    allowed = torch.ones(3, 4, dtype=torch.bool)
    allowed[:, 2] = False  # what the grammar forbids does not matter
    assert choosing(logits, SamplingConfig(), allowed).faults.tolist() == [0, 0, 0]
    allowed[2] = False
    assert choosing(logits, SamplingConfig(), allowed).faults.tolist() == [0, 0, NOTHING_ALLOWED]


def test_ids_are_those_handed_in() -> None:
    settings = Settings.of([SamplingConfig(temperature=0.0)] * 2)
    where: dict[str, Any] = {"seeds": torch.arange(2), "positions": torch.arange(2)}
    chosen = choose(torch.eye(2, 3), settings, ids=torch.tensor([7, 5, 9]), **where)
    assert chosen.ids.tolist() == [7, 5]


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"guidance_interval": (0.5, 0.2)}]
)
def test_ranges_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SamplingConfig(**options)
