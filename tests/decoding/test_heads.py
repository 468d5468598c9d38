"""Which rows need which head."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from anymodal.decoding.heads import CODE, DONE, FORCED, TEXT, Automata


@pytest.mark.parametrize("layout", ["fixed", "rows"])
def test_states_say_what_they_need(make_setup: Callable[..., Any], layout: str) -> None:
    setup = make_setup("decoupled", layout)
    automata = Automata(torch.device("cpu"))
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
