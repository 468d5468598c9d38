"""Streams say what the whole answer says, piece by piece."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anymodal.decoding.choice import SamplingError
from anymodal.decoding.engine import Engine
from anymodal.pipeline import Pipeline
from anymodal.streaming import PictureRows, TextPiece, stream
from anymodal.tokens.config import PictureLayout


@pytest.fixture(scope="module")
def pipe(toy: Any) -> Pipeline:
    return Pipeline(toy.parts(heads="decoupled"))


def pixels(image: Any) -> Any:
    return np.asarray(image)


def test_pieces_of_text_join_to_the_answer(pipe: Pipeline) -> None:
    for seed in range(4):
        options: dict[str, Any] = {"want": "text", "max_new_tokens": 40, "temperature": 1.5, "seed": seed}
        (whole,) = pipe.generate(["a dog"], **options) or [""]
        pieces = list(pipe.stream(["a dog"], **options))
        assert all(isinstance(piece, TextPiece) and piece.text for piece in pieces)
        assert "".join(piece.text for piece in pieces if isinstance(piece, TextPiece)) == whole
        assert len(pieces) > 1
    assert pipe.usage.tokens > 0


def test_pictures_grow_by_rows_to_what_is_drawn(pipe: Pipeline) -> None:
    (whole,) = pipe.generate(["a dog"], want="image", seed=3)
    assert isinstance(whole, Image.Image)
    events = [event for event in pipe.stream(["a dog"], want="image", seed=3) if isinstance(event, PictureRows)]
    assert [event.done for event in events] == [False] * (len(events) - 1) + [True]
    counts = [event.rows for event in events]
    assert counts == sorted(set(counts))
    assert {event.num_rows for event in events} == {4}
    assert np.array_equal(pixels(events[-1].image), pixels(whole))
    for event in events[:-1]:
        assert event.image.size == whole.size
        height = whole.height // 4 * event.rows
        assert (pixels(event.image)[height:] == 128).all()
        assert not (pixels(event.image)[:height] == 128).all()
    (only,) = pipe.stream(["a dog"], want="image", seed=3, rows=False)
    assert isinstance(only, PictureRows)
    assert only.done


def test_text_and_pictures_come_in_order(pipe: Pipeline) -> None:
    for seed in range(6):
        options: dict[str, Any] = {"max_new_tokens": 60, "temperature": 3.0, "max_images": 2, "seed": seed}
        whole = pipe.generate(["a dog"], **options)
        seen: list[Any] = []
        heard = pipe.generate(["a dog"], on_event=seen.append, **options)
        assert [part if isinstance(part, str) else part.tobytes() for part in heard] == [
            part if isinstance(part, str) else part.tobytes() for part in whole
        ]
        assert seen


def test_a_callback_stops_early(pipe: Pipeline) -> None:
    seen: list[Any] = []

    def stop(event: Any) -> bool:
        seen.append(event)
        return len(seen) == 2

    parts = pipe.generate(["a dog"], want="text", max_new_tokens=40, temperature=1.5, on_event=stop)
    assert len(seen) == 2
    assert parts == ["".join(event.text for event in seen)]
    assert pipe.usage.tokens < 40


def test_leaving_the_loop_frees_the_row(pipe: Pipeline) -> None:
    engine = Engine(pipe.model.eval())
    tickets = [engine.submit(pipe.prompter.request(["a dog"], {"want": "image", "seed": seed})) for seed in range(2)]
    events: Any = stream(engine, tickets[0], pipe.prompter)
    next(events)
    assert engine.used_rows == 2
    events.close()
    assert engine.used_rows == 1
    assert tickets[0].cancelled
    while not engine.idle:
        engine.step()
    assert np.array_equal(
        pixels(pipe.prompter.parts_of(tickets[1].ids)[0]), pixels(pipe.generate(["a dog"], want="image", seed=1)[0])
    )


@pytest.mark.parametrize(("rows", "columns"), [(2, 4), (4, 4), (4, 2), (5, 2)])
def test_a_size_that_is_asked_for_is_that_of_what_grows(toy: Any, rows: int, columns: int) -> None:
    parts = toy.parts()
    pipe = Pipeline(replace(parts, layout=PictureLayout(kind="rows", sizes=((2, 4), (4, 4), (4, 2), (5, 2)))))
    cell = pipe.prompter.image_tokenizer.config.down_sampling
    events = [*pipe.stream(["a dog"], want="image", seed=3, height=rows * cell, width=columns * cell)]
    assert {event.num_rows for event in events if isinstance(event, PictureRows)} == {rows}
    assert {event.image.size for event in events if isinstance(event, PictureRows)} == {(columns * cell, rows * cell)}
    assert len(events) > 1, "it grows"


def test_rows_of_an_unknown_size_grow_too(toy: Any) -> None:
    parts = toy.parts(heads="shared")
    vocabulary = parts.model.vocabulary
    assert vocabulary.has_special("eol")
    pipe = Pipeline(replace(parts, layout=PictureLayout(kind="rows", sizes=((2, 4), (4, 4), (3, 2)))))
    for seed in range(5):
        events = list(pipe.stream(["a dog"], want="image", seed=seed, temperature=2.0))
        assert all(isinstance(event, PictureRows) for event in events)  # the header is no text
        last = events[-1]
        assert isinstance(last, PictureRows)
        assert last.done
        (whole,) = pipe.generate(["a dog"], want="image", seed=seed, temperature=2.0)
        assert isinstance(whole, Image.Image)
        assert np.array_equal(pixels(last.image), pixels(whole))


def test_errors_reach_whoever_listens(toy: Any) -> None:
    pipe = Pipeline(toy.parts(heads="decoupled"))
    with torch.no_grad():
        pipe.model.embedding.weight.fill_(torch.nan)
    with pytest.raises(SamplingError, match="hold not numbers"):
        list(pipe.stream(["a dog"], want="text"))
