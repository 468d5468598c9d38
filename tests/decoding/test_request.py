"""Requests know what they need."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from anymodal.decoding.request import Ticket


def test_rows_and_budgets(make_setup: Callable[..., Any]) -> None:
    setup = make_setup()
    plain, guided = setup.draw("a dog", 1), setup.draw("a dog", 1, guidance_scale=2.0)
    assert (plain.num_rows, guided.num_rows) == (1, 2)
    assert setup.redraw(1, guidance_scale=2.0, image_guidance_scale=1.2).num_rows == 3
    assert len(setup.redraw(1, guidance_scale=2.0, image_guidance_scale=1.2).beside()) == 2
    assert guided.bounded
    assert guided.budget(96) == 13
    text = setup.write("a", 1)
    assert text.budget(96) == 20
    assert replace(text, max_new_tokens=500).budget(96) == 96 - len(text.prompt.ids)


def test_tickets_hold_what_was_written(make_setup: Callable[..., Any]) -> None:
    ticket = Ticket(make_setup().write("a", 1))
    ticket.written += [3, 4]
    assert ticket.ids.tolist() == [3, 4]
    assert ticket.sequence.ids.tolist()[-2:] == [3, 4]
    assert not ticket.sequence.loss.any()
