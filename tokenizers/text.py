"""Learn a text tokenizer (byte-level BPE) from shards or from text files.

    anymodal tokenizers text --shards "data/train-{000000..000003}.tar" --out tokenizer.json --vocab_size 1024
    anymodal tokenizers text --texts '["book.txt", "captions/*.txt"]' --out tokenizer.json

From shards it learns from captions, from questions and answers, and from what is said in chat turns.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anymodal.data.index import ShardIndex


def main(
    *,
    out: Path,
    shards: str | None = None,
    texts: list[str] = [],  # noqa: B006 (never changed)
    vocab_size: int = 4096,
    index_folder: Path | None = None,
    max_bad_fraction: float = 0.001,
) -> None:
    """Learn a text tokenizer and write it whole or not at all.

    Args:
        out: the tokenizer.json to write.
        shards: shards to learn from, as open_clip writes them ("train-{000..010}.tar").
        texts: UTF-8 text files to learn from; globs are allowed.
        vocab_size: number of ids; 256 bytes and the special tokens are among them.
        index_folder: where indexes of foreign shards go when their own folder is read-only.
        max_bad_fraction: share of bad samples above which nothing is learned.
    """
    import glob
    import itertools

    from anymodal.data.index import ShardIndex
    from anymodal.data.progress import track
    from anymodal.tokens.text import TextTokenizer

    if not shards and not texts:
        raise ValueError("a text tokenizer learns from --shards or --texts, got neither; give one of them")
    files = []
    for pattern in texts:
        matched = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
        if not matched:
            raise ValueError(f"{pattern!r} must name at least one text file, but there is none; check --texts")
        files += matched
    sources: list[Iterable[str]] = [_lines(path) for path in files]
    if shards:
        index = ShardIndex.open(
            shards,
            index_folder=index_folder,
            max_bad_fraction=max_bad_fraction,
            progress=lambda items: track(items, "indexing"),
        )
        sources.append(_said(index, track(range(len(index)), "reading")))
    count = 0

    def counted() -> Iterator[str]:
        nonlocal count
        for text in itertools.chain.from_iterable(sources):
            count += bool(text.strip())
            yield text

    tokenizer = TextTokenizer.learn(counted(), vocab_size)
    if not count:
        raise ValueError(f"there must be some text to learn from, but {shards or ', '.join(texts)} holds none")
    tokenizer.save(out)
    print(f"{out}: {tokenizer.vocab_size} ids learned from {count} texts, fingerprint {tokenizer.fingerprint}")
    if shards and index.bad:
        print("set aside: " + ", ".join(f"{number} x {reason}" for reason, number in index.bad.items()))


def _said(index: "ShardIndex", numbers: Iterable[int]) -> Iterator[str]:
    from anymodal.data.index import BadSample
    from anymodal.data.texts import texts_of

    for number in numbers:
        try:
            sample = index.read(number)
        except BadSample as error:
            raise ValueError(f"a shard must stay as it was indexed, but it changed: {error}; start again") from error
        yield from texts_of(sample)


def _lines(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            yield from file
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"a text file must be readable UTF-8, but {path} is not: {error}") from error
