"""A conversation gives what its whole text would give, and reads only what is new."""

from typing import Any

import pytest
import torch
from PIL import Image

from anymodal.data.emoji import picture
from anymodal.pipeline import Pipeline
from anymodal.tokens.document import Codes, Look, Turn

IMAGE = picture("dog").convert("RGB")


@pytest.fixture
def pipe(toy: Any) -> Pipeline:
    parts = toy.parts(heads="decoupled")
    parts.model.double()
    return Pipeline(parts)


def test_answers_are_those_of_the_whole_conversation(pipe: Pipeline) -> None:
    chat = pipe.chat()
    said: list[list[Any]] = [[IMAGE, "What is it?"], ["Is it red?"], ["And now?"]]
    turns: list[Turn] = []
    for parts in said:
        answer = chat.say(*parts, want="text", max_new_tokens=6, temperature=1.2, seed=4)
        turns.append(Turn("user", tuple(pipe.prompter.resolve(parts))))
        assert answer == pipe.generate(turns, want="text", max_new_tokens=6, temperature=1.2, seed=4)
        turns.append(Turn("assistant", tuple(answer)))
    tokens = len(pipe.encoder.encode(turns[:-1], complete=False).ids)
    assert chat.engine.reader.read_tokens < 1.5 * tokens  # not the sum over all turns


def test_a_drawing_is_looked_at_when_it_is_asked_about(pipe: Pipeline) -> None:
    chat = pipe.chat()
    (drawn,) = chat.say("a dog", want="image", seed=1)
    assert isinstance(drawn, Image.Image)
    assert isinstance(chat.turns[1].parts[0], Codes)
    chat.say("What is it?", want="text", max_new_tokens=4)
    first, second = chat.turns[2].parts
    assert isinstance(first, Look)
    assert second == "What is it?"
    resolved = pipe.prompter.resolve([drawn])[0]
    assert torch.equal(torch.as_tensor(first.picture), torch.as_tensor(resolved.picture))
    chat.say(IMAGE, "And this?", want="text", max_new_tokens=4)
    assert sum(isinstance(part, Look) for part in chat.turns[4].parts) == 1


def test_streams_are_remembered_when_heard_out(pipe: Pipeline) -> None:
    chat, other = pipe.chat(), pipe.chat()
    options: dict[str, Any] = {"want": "text", "max_new_tokens": 12, "temperature": 1.5}
    events: Any = chat.stream("a dog", **options)
    next(events)
    events.close()
    assert chat.turns == []
    pieces = "".join(event.text for event in chat.stream("a dog", **options) if not hasattr(event, "image"))
    assert [pieces] == other.say("a dog", **options)
    assert [turn.parts for turn in chat.turns] == [turn.parts for turn in other.turns]


def test_what_does_not_fit_leaves_the_conversation_as_it_was(pipe: Pipeline) -> None:
    chat = pipe.chat()
    chat.say("a dog", want="text", max_new_tokens=3)
    before = list(chat.turns)
    with pytest.raises(ValueError, match="shorten the prompt"):
        chat.say("x" * 800, want="image")
    assert chat.turns == before


def test_an_answer_that_is_interrupted_frees_its_row(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = pipe.chat()
    chat.say("hello", want="text", max_new_tokens=3)
    turns, plain, steps = list(chat.turns), chat.engine.step, list[int]()

    def interrupted() -> None:
        plain()
        steps.append(chat.engine.used_rows)
        if len(steps) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(chat.engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chat.say("a dog", want="image", seed=1)
    assert steps[-1] > 0
    assert chat.engine.idle
    assert chat.turns == turns


def test_a_model_that_trains_goes_on_training(pipe: Pipeline) -> None:
    pipe.model.train()
    chat = pipe.chat()
    chat.say("hello", want="text", max_new_tokens=3)
    seen = [pipe.model.training for _ in chat.stream("a dog", want="image", seed=1)]
    seen += [pipe.model.training for _ in pipe.stream(["a dog"], want="image", seed=1)]
    assert seen
    assert not any(seen)
    assert pipe.model.training
