"""Which rows need which head."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from anymodal.decoding.heads import CODE, DONE, FORCED, TEXT, Automata, Live, Rows
from anymodal.decoding.request import Ticket


@pytest.mark.parametrize("layout", ["fixed", "rows"])
def test_states_say_what_they_need(make_setup: Callable[..., Any], layout: str) -> None:
    setup = make_setup("decoupled", layout)
    automata = Automata(torch.device("cpu"), setup.model.vocabulary.special("boi"))
    image, text = setup.grammar("image"), setup.grammar("text")
    start, other = automata.start(image), automata.start(text)
    assert automata.start(image) == start
    assert automata.kinds_of(text) >= {TEXT, DONE}
    state, kinds, ids = torch.tensor([start]), [], []
    code = int(setup.model.vocabulary.table()[5])
    header = setup.encoder.text_ids("2*3") if layout == "rows" else []
    for _ in range(40):
        kind = int(automata.kind[state])
        if kind == DONE:
            break
        index = {TEXT: header.pop(0) if kind == TEXT else 0, CODE: code, FORCED: int(automata.forced[state])}[kind]
        kinds.append(kind)
        ids.append(index)
        state = automata.grammar.advance(state, torch.tensor([index]))
    assert bool(image.done[image.check(torch.tensor(ids))])
    expected = [CODE] * 12 + [FORCED] if layout == "fixed" else None
    assert expected is None or kinds == expected
    if layout == "rows":  # the last digit and IMG leave no choice; neither do ends of rows, of the picture and EOI
        assert kinds.count(CODE) == 6
        assert kinds.count(FORCED) == len(kinds) - 6 - kinds.count(TEXT)
        assert kinds[-4:] == [CODE, FORCED, FORCED, FORCED]
    assert int(automata.kind[other]) == TEXT


def rows_of(setup: Any, **options: Any) -> Rows:
    """Gather three guided requests, of which the last is guided three ways."""
    requests = [setup.draw("a", 1, **options), setup.draw("b", 2, **options)]
    requests.append(setup.redraw(3, image_guidance_scale=1.7, **options))
    automata, lives = Automata(torch.device("cpu"), setup.model.vocabulary.special("boi")), []
    for number, request in enumerate(requests):
        lives.append(Live.of(Ticket(request), automata, 96))
        lives[-1].slots = list(range(3 * number, 3 * number + request.num_rows))
    return Rows.of(lives, [0, 1, 2], CODE, torch.device("cpu"))


def test_guidance_is_as_exact_as_the_logits(make_setup: Callable[..., Any]) -> None:
    rows = rows_of(make_setup(), guidance_scale=1.2)
    logits = torch.randn(7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    guided = rows.guide(logits, torch.zeros(3, dtype=torch.long))
    own, empty, pictures = logits[:3], logits[3:6], logits[6]
    expected = empty + 1.2 * (own - empty)
    expected[2] = empty[2] + 1.7 * (pictures - empty[2]) + 1.2 * (own[2] - pictures)
    assert torch.equal(guided, expected)


def test_outside_of_its_interval_guidance_changes_no_bit(make_setup: Callable[..., Any]) -> None:
    rows = rows_of(make_setup(), guidance_scale=3.0, guidance_interval=(0.5, 1.0))
    logits = torch.randn(7, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(rows.guide(logits, torch.zeros(3, dtype=torch.long)), logits[:3])
    assert rows.interval is not None
    assert not torch.equal(rows.guide(logits, rows.interval[0]), logits[:3])
