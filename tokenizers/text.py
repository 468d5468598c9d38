"""Learn a text tokenizer (byte-level BPE) from shards or from text files.

    anymodal tokenizers text --shards "data/train-{000000..000003}.tar" --out tokenizer.json --vocab_size 1024
    anymodal tokenizers text --texts '["book.txt", "captions/*.txt"]' --out tokenizer.json

From shards it learns from captions, from questions and answers, and from what is said in chat turns.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from anymodal.data.config import DataConfig

if TYPE_CHECKING:
    from anymodal.data.index import ShardIndex


def main(
    *,
    out: Path,
    shards: str | None = None,
    texts: list[str] = [],  # noqa: B006 (never changed)
    vocab_size: int = 4096,
    index_folder: str | None = None,
    cache_folder: str = "",
    cache_shards: int = 16,
    max_bad_fraction: float = 0.001,
) -> None:
    """Learn a text tokenizer and write it whole or not at all.

    Args:
        out: the tokenizer.json to write.
        shards: shards to learn from, as open_clip writes them ("train-{000..010}.tar"), or addresses of remote ones.
        texts: UTF-8 text files to learn from; globs are allowed.
        vocab_size: number of ids; 256 bytes and the special tokens are among them.
        index_folder: where indexes of foreign shards go when their own folder is read-only.
        cache_folder: where copies of remote shards are kept, and their indexes; a training may share them.
        cache_shards: half the number of copies that are kept.
        max_bad_fraction: share of bad samples above which nothing is learned.
    """
    import itertools

    from anymodal.data.opening import open_shards
    from anymodal.data.progress import track
    from anymodal.tokens.text import TextTokenizer

    if not shards and not texts:
        raise ValueError("a text tokenizer learns from --shards or --texts, got neither; give one of them")
    sources: list[Iterable[str]] = [_lines(path) for pattern in texts for path in _files(pattern)]
    if shards:
        data = DataConfig(
            train=shards, index_folder=index_folder, cache_folder=cache_folder, cache_shards=cache_shards,
            max_bad_fraction=max_bad_fraction,
        )  # fmt: skip
        index = open_shards(data, shards, progress=lambda items: track(items, "indexing"))
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


def _files(pattern: str) -> list[str]:
    import glob

    matched = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    if not matched:
        raise ValueError(f"{pattern!r} must name at least one text file, but there is none; check --texts")
    return matched


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
