import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anymodal.data.samples import (
    DESCRIBE,
    Reading,
    UnfitSample,
    captions_of,
    codes_of,
    document_of,
    fingerprints_of,
    picture_names,
    pixels_of,
)
from anymodal.data.shards import Sample
from anymodal.tokens.document import Codes, Draw, Look, Say, Turn

READING = Reading(fingerprint="f00d", look_size=8, prompt_dropout=0.0)
AS_CODES = Reading(fingerprint="f00d", look_size=None)


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return stream.getvalue()


def npy(value: int) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.full((2, 3), value, dtype=np.uint16))
    return stream.getvalue()


DETAILS = {
    "captions": ["a dog", "one dog"],
    "questions": [{"question": f"q{i}", "answer": f"a{i}", "type": "what"} for i in range(3)],
    "turns": [
        {"role": "user", "parts": [{"look": "1.png"}, {"text": "and"}, {"look": "png"}]},
        {"role": "assistant", "parts": [{"draw": "2.webp"}, {"text": "done"}]},
    ],
}
SAMPLE = Sample(
    "0",
    {
        "png": png("red"),
        "1.png": png("blue"),
        "txt": b" a dog \n",
        "json": json.dumps(DETAILS).encode(),
        "codes.f00d.npy": npy(1),
        "1.codes.f00d.npy": npy(2),
        "2.codes.f00d.npy": npy(3),
        "codes.beef.npy": npy(4),
    },
)


def document(task: str, reading: Reading = READING, sample: Sample = SAMPLE, seed: int = 0) -> Any:
    return document_of(sample, task, reading, np.random.Generator(np.random.Philox(seed)))


def test_members_are_named() -> None:
    assert captions_of(SAMPLE) == ["a dog", "one dog"]
    assert picture_names(SAMPLE) == ["png", "1.png"]
    assert fingerprints_of(SAMPLE) == {"f00d", "beef"}
    assert codes_of(SAMPLE, READING).tolist() == [[1] * 3] * 2
    assert codes_of(SAMPLE, READING).dtype == torch.int64
    assert codes_of(SAMPLE, READING, "2.webp").unique().tolist() == [3]
    assert pixels_of(SAMPLE, 8, "crop", "1.png")[:, 0, 0].tolist() == [-1, -1, 1]


def test_each_task_makes_its_document() -> None:
    user, assistant = document("draw")
    assert (user.role, assistant.role) == ("user", "assistant")
    assert user.parts[0] in ("a dog", "one dog")
    assert isinstance(assistant.parts[0], Draw)
    user, assistant = document("answer")
    assert isinstance(user.parts[0], Look)
    shown: Any = user.parts[0]
    assert shown.picture[:, 0, 0].tolist() == [1, -1, -1]
    assert user.parts[1][1:] == assistant.parts[0][1:]
    assert isinstance(document("answer", AS_CODES)[0].parts[0], Codes)
    assert document("text")[0] in (Say("a dog"), Say("one dog"))
    several = document("answer", Reading(fingerprint="f00d", look_size=8, questions_per_picture=9))
    assert sorted(turn.parts[-1] for turn in several) == ["a0", "a1", "a2", "q0", "q1", "q2"]
    assert sum(isinstance(part, Look) for turn in several for part in turn.parts) == 1


@pytest.mark.parametrize(("reading", "kind"), [(READING, Look), (AS_CODES, Codes)])
def test_turns_show_the_pictures_that_they_name(reading: Reading, kind: type) -> None:
    user, assistant = document("chat", reading)
    assert isinstance(user, Turn)
    pictures: Any = user.parts
    first, word, second = pictures
    assert (type(first), word, type(second)) == (kind, "and", kind)
    blue, red = ([-1, -1, 1], [1, -1, -1]) if kind is Look else ([2] * 2, [1] * 2)
    assert first.picture[..., 0, 0].tolist() == blue if kind is Look else first.picture[:, 0].tolist() == blue
    assert second.picture[..., 0, 0].tolist() == red if kind is Look else second.picture[:, 0].tolist() == red
    assert assistant.parts[0].picture.unique().tolist() == [3]
    assert assistant.parts[1] == "done"


def test_prompts_are_dropped_at_their_share() -> None:
    reading = Reading(fingerprint="f00d", look_size=8, prompt_dropout=0.3)
    empty = sum(document("draw", reading, seed=seed)[0].parts[0] == "" for seed in range(1000))
    assert abs(empty - 300) < 45  # three deviations


@pytest.mark.parametrize(
    ("task", "members", "reason"),
    [
        ("draw", {"txt": b"a"}, "no codes"),
        ("draw", {"codes.f00d.npy": npy(1)}, "no caption"),
        ("text", {"png": png("red")}, "no caption"),
        ("answer", {"png": png("red")}, "no question"),
        ("answer", {"json": json.dumps(DETAILS).encode()}, "no picture"),
        ("chat", {"png": png("red")}, "no turns"),
        ("answer", {"png": b"GIF89a", "json": json.dumps(DETAILS).encode()}, "unknown format"),
    ],
)
def test_what_a_sample_lacks_is_a_reason(task: str, members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(UnfitSample) as caught:
        document(task, sample=Sample("0", members))
    assert caught.value.reason == reason


def test_describing_answers_a_look_with_a_caption() -> None:
    asked, told = document("describe")
    assert isinstance(asked.parts[0], Look)
    assert asked.parts[1] == DESCRIBE
    assert told.role == "assistant"
    assert told.parts[0] in captions_of(SAMPLE)
    with pytest.raises(UnfitSample, match="no caption"):
        document("describe", sample=Sample("0", {"png": png("red")}))


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of draw, answer, describe, text, chat, got 'sing'"):
        document("sing")
