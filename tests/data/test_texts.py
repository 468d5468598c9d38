import json

from anymodal.data.shards import Sample
from anymodal.data.texts import texts_of


def test_everything_that_is_said_comes_out_once() -> None:
    details = {
        "captions": ["dog", "a dog"],
        "questions": [{"question": "What is this?", "answer": "a dog", "type": "what"}],
        "turns": [{"role": "user", "parts": [{"look": "webp"}, {"text": "Hello"}]}],
    }
    sample = Sample("0", {"txt": b"a dog", "json": json.dumps(details).encode()})
    assert list(texts_of(sample)) == ["a dog", "dog", "What is this?", "a dog", "Hello"]


def test_a_bare_picture_says_nothing() -> None:
    assert list(texts_of(Sample("0", {"png": b""}))) == []
