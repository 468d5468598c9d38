"""What a published layout is to the rest: how its folders are known, read and written."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anymodal.model.folder import ModelFolder, Origin
from anymodal.published.chat import jinja_of
from anymodal.tokens.files import MAX_SIDE_BYTES, check_within, read_bytes
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.weights import read_json

SIDE_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
    "processor_config.json", "preprocessor_config.json", "generation_config.json",
)  # fmt: skip
"""What travels with the weights and is given back unchanged."""


@dataclass(frozen=True)
class PublishedFolder:
    """A published folder that was opened; its pickles are read only where `allow_pickle` says so."""

    path: Path
    config: Mapping[str, Any]
    allow_pickle: bool = False

    @classmethod
    def open(cls, path: Path, *, allow_pickle: bool = False) -> "PublishedFolder":
        """Read the config of a folder, empty where it has none.

        Raises:
            ValueError: its config.json is broken.
        """
        file = path / "config.json"
        return cls(path=path, config=read_json(file) if file.is_file() else {}, allow_pickle=allow_pickle)

    def json(self, name: str) -> Mapping[str, Any]:
        """Return a JSON file of the folder, empty where it has none."""
        return read_json(self.path / name) if (self.path / name).is_file() else {}

    def image_processor(self) -> Mapping[str, Any]:
        """Return the settings of their image processor, empty where the folder has none.

        Raises:
            ValueError: its normalisation is not what a byte times a scale, minus one, can be.
        """
        inside = self.json("processor_config.json").get("image_processor")
        found = inside if isinstance(inside, Mapping) else self.json("preprocessor_config.json")
        mean, deviation = (found.get(key) or [0.5] * 3 for key in ("image_mean", "image_std"))
        if mean != deviation or mean not in ([0.5] * 3, [1.0] * 3):
            raise ValueError(
                f"the image processor of {self.path} must have image_mean and image_std 0.5, or both 1, for red, green "
                f"and blue, got {mean} and {deviation}, which would need pixels of another range than [-1, 1]."
            )
        return found

    def origin(self, layout: str) -> Origin:
        """Keep what `save_pretrained` gives back unchanged.

        Raises:
            ValueError: a file is too large to be what its name says, or a link out of the folder, perhaps to a secret.
        """
        files = {name: self.path / name for name in SIDE_FILES if (self.path / name).is_file()}
        for path in files.values():
            check_within(path)
        return Origin(layout, self.config, {name: read_bytes(path, MAX_SIDE_BYTES) for name, path in files.items()})

    def roles(self, tokenizer: TextTokenizer, wanted: Mapping[str, Sequence[str]]) -> dict[str, int]:
        """Return the id of every role: the first of its candidates that the folder's tokenizer has.

        A candidate is a key of tokenizer_config.json ("boi_token"), or the token as it is spelled.

        Raises:
            ValueError: no candidate of a role that must exist; a role that may be missing ends in "?".
        """
        named = _named_tokens(self.json("tokenizer_config.json"), self.json("special_tokens_map.json"))
        found: dict[str, int] = {}
        for role, candidates in wanted.items():
            spelled = [named.get(candidate, candidate) for candidate in candidates]
            ids = [index for token in spelled if (index := tokenizer.id_of(token)) is not None]
            if ids:
                found[role.removesuffix("?")] = ids[0]
            elif not role.endswith("?"):
                raise ValueError(
                    f"the tokenizer of {self.path} has no token for {role!r}: none of {', '.join(spelled)} is in its "
                    "tokenizer.json; use the files of one model together."
                )
        return found


@dataclass(frozen=True)
class Layout:
    """One published layout: whether a folder has it, how it is read, and how a model is written in it."""

    name: str
    fits: Callable[[PublishedFolder], bool]
    load: Callable[[PublishedFolder], ModelFolder]
    save: Callable[[ModelFolder, Path], None] | None = None


@contextmanager
def no_memory() -> Iterator[None]:
    """Build modules on the meta device: shapes without numbers, before a file brings the numbers."""
    with torch.device("meta"):
        yield


def write_side_files(parts: ModelFolder, layout: str, folder: Path, made: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the small files beside the weights: those that came in with this layout, else `made`."""
    parts.text_tokenizer.save(folder / "tokenizer.json")
    for name, content in made.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    special, piece = parts.model.vocabulary.special, parts.text_tokenizer.piece
    if parts.model.vocabulary.has_special("look"):
        chat = jinja_of(parts.template, lambda role: piece(special(role)), piece(special("look")))
        (folder / "chat_template.jinja").write_text(chat, encoding="utf-8")
    if parts.origin is not None and parts.origin.layout == layout:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        for name, data in parts.origin.files.items():
            (folder / name).write_bytes(data)


def _named_tokens(*files: Mapping[str, Any]) -> dict[str, str]:
    """Return the tokens that config files name: keys such as "boi_token", at the top or among the extra ones."""
    named: dict[str, str] = {}
    for file in files:
        extra = file.get("extra_special_tokens")
        for entries in (file, extra if isinstance(extra, Mapping) else {}):
            for key, value in entries.items():
                content = value.get("content") if isinstance(value, Mapping) else value
                if key.endswith("_token") and isinstance(content, str):
                    named.setdefault(key, content)
    return named
