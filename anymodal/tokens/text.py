"""Text <-> token ids: byte-level BPE, in which typed text never becomes a control token."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from anymodal.tokens.config import SPECIALS
from anymodal.tokens.files import MAX_SIDE_BYTES, read_bytes

_ALPHABET = 256  # every byte is a token, so that every string has ids
_MAX_IDS = 2**24
_KEPT_TEXTS, _KEPT_CHARACTERS = 8192, 256  # questions, answers and captions come again, epoch by epoch


class TextTokenizer:
    """Turn text into ids and back.

    Every added token in angle brackets counts as a control token: typed by a user it stays text. For a tokenizer that
    was learned here `decode(encode(text)) == text` holds for every string that UTF-8 can encode.

    >>> tokenizer = TextTokenizer.learn(["a red apple", "a red dog"], vocab_size=280)
    >>> tokenizer.decode(tokenizer.encode("a <boi> apple"))
    'a <boi> apple'
    >>> tokenizer.specials["boi"] in tokenizer.encode("a <boi> apple")
    False
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        control = [
            AddedToken(token.content, special=True, normalized=False)
            for token in tokenizer.get_added_tokens_decoder().values()
            if not token.special and token.content.startswith("<") and token.content.endswith(">")
        ]
        if control:
            tokenizer.add_special_tokens(control)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}

    @classmethod
    def learn(cls, texts: Iterable[str], vocab_size: int, specials: Sequence[str] = SPECIALS) -> "TextTokenizer":
        """Learn a byte-level BPE; the specials take the first ids. Few texts may give fewer ids than `vocab_size`.

        Raises:
            ValueError: `vocab_size` does not hold the bytes and the specials, or a text is not Unicode text.
        """
        least = _ALPHABET + len(specials)
        if vocab_size < least:
            needs = f"{_ALPHABET} bytes and {len(specials)} specials"
            raise ValueError(f"vocab_size must be at least {least} ({needs}), not {vocab_size}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[f"<{name}>" for name in specials],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator((_checked(text) for text in texts), trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: str | Path) -> "TextTokenizer":
        """Read a `tokenizer.json`.

        Raises:
            ValueError: the file is missing or is no tokenizer.
        """
        if not Path(path).is_file():
            raise ValueError(f"a text tokenizer is a file such as tokenizer.json, but there is no file {path}")
        data = read_bytes(Path(path), MAX_SIDE_BYTES)
        try:
            found = cls(Tokenizer.from_str(data.decode("utf-8")))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises the bare class, and a panic of its core is no Exception
            raise ValueError(f"{path} is no tokenizer that the tokenizers library can read: {error}") from error
        if not 0 < found.vocab_size <= _MAX_IDS:
            raise ValueError(f"{path} is no tokenizer: it must have 1 to {_MAX_IDS} ids, got {found.vocab_size}.")
        return found

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json`, whole or not at all."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(self._tokenizer.to_str(pretty=True))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def encode(self, text: str) -> list[int]:
        """Give the ids of a text; none of them is special.

        Raises:
            ValueError: the text holds a lone surrogate, which UTF-8 cannot encode.
        """
        if text in self._known:
            return list(self._known[text])
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            _checked(text)
            raise error
        if len(text) <= _KEPT_CHARACTERS:
            if len(self._known) >= _KEPT_TEXTS:
                self._known.clear()
            self._known[text] = tuple(ids)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of ids; specials are left out, bytes that are not UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def with_specials(self, names: Sequence[str]) -> "TextTokenizer":
        """Return this tokenizer with control tokens for role names; those that it has keep their ids."""
        grown = Tokenizer.from_str(self._tokenizer.to_str())
        grown.add_special_tokens([AddedToken(f"<{name}>", special=True, normalized=False) for name in names])
        return TextTokenizer(grown)

    def id_of(self, piece: str) -> int | None:
        """Give the id of a token in the spelling of the tokenizer's file, None where it has none."""
        index: int | None = self._tokenizer.token_to_id(piece)
        return index

    def piece(self, index: int) -> str:
        """Name an id for a message, in the spelling of the tokenizer's file."""
        return self._tokenizer.id_to_token(index) or f"id {index}"

    @property
    def vocab_size(self) -> int:
        """Count the ids, specials included: one more than the largest id."""
        return self._vocab_size

    @cached_property
    def specials(self) -> Mapping[str, int]:
        """Give the id of every role name: the control tokens spelled `<name>`."""
        added = self._tokenizer.get_added_tokens_decoder()
        names = {index: re.fullmatch(r"<(\w+)>", token.content) for index, token in added.items() if token.special}
        return {match[1]: index for index, match in sorted(names.items()) if match}

    @cached_property
    def text_ids(self) -> tuple[int, ...]:
        """Give the ids that stand for text: all but the control tokens."""
        control = {index for index, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        return tuple(sorted(set(self._tokenizer.get_vocab().values()) - control))

    @cached_property
    def fingerprint(self) -> str:
        """Name this tokenizer by its content: 16 hexadecimal digits."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()[:16]

    @cached_property
    def _vocab_size(self) -> int:
        return max(self._tokenizer.get_vocab().values(), default=-1) + 1


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wrong = f"character {error.start} is a lone surrogate ({text[error.start]!a})"
        raise ValueError(f"text must be valid Unicode, but {wrong}; remove it") from error
    return text
