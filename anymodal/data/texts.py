"""Everything that a sample says, for text tokenizers to learn from."""

from collections.abc import Iterator

from anymodal.data.samples import captions_of, details_of
from anymodal.data.shards import Sample


def texts_of(sample: Sample) -> Iterator[str]:
    """Yield captions, questions, answers and what is said in turns.

    >>> list(texts_of(Sample("0", {"txt": b"a dog", "json": b'{"captions": ["dog"]}'})))
    ['a dog', 'dog']
    """
    yield from captions_of(sample)
    details = details_of(sample)
    for question in details.get("questions", []):
        yield from (question["question"], question["answer"])
    for turn in details.get("turns", []):
        yield from (part["text"] for part in turn["parts"] if "text" in part)
