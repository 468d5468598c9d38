"""A model folder on disk: everything that one needs to sample, whole or not at all."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anymodal.configuration import from_dict, to_dict
from anymodal.model.config import AnyModalConfig
from anymodal.model.unified import AnyModal
from anymodal.tokens.config import ChatTemplate, PictureLayout
from anymodal.tokens.document import DocumentEncoder
from anymodal.tokens.files import MAX_SIDE_BYTES, check_within, read_bytes
from anymodal.tokens.folders import staged_folder
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.tensors import TensorFiles
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary
from anymodal.tokens.weights import WEIGHTS, load_weights, read_json, save_weights, write_json

EMBEDDED = Path(__file__).parent.parent / "models"
FORMAT = 1
ORIGIN = "origin"


def here_or_embedded(path: Path) -> Path:
    """Return the folder of the embedded model of this name, unless a folder of that name stands here."""
    return EMBEDDED / path if not path.is_dir() and (EMBEDDED / path).is_dir() else path


@dataclass(frozen=True)
class Origin:
    """The published folder that a model came from: its layout, its config, and the small files that stood beside it.

    `unused` are tensors that stood there and that no part of the model reads; they go out again as they came.
    """

    layout: str
    config: Mapping[str, Any]
    files: Mapping[str, bytes]
    unused: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class ModelFolder:
    """The parts of a model folder.

    `generation` are its measured sampling defaults, `card` is its README, `origin` where it was published.
    """

    model: AnyModal
    text_tokenizer: TextTokenizer
    image_tokenizer: ImageTokenizer
    layout: PictureLayout
    template: ChatTemplate
    generation: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""
    origin: Origin | None = None

    def encoder(self) -> DocumentEncoder:
        """Return what writes documents as this model's ids."""
        return DocumentEncoder(
            text_tokenizer=self.text_tokenizer,
            vocabulary=self.model.vocabulary,
            layout=self.layout,
            template=self.template,
            look_tokens=self.model.look_tokens,
        )

    def reading_codes(self) -> "ModelFolder":
        """Return these parts with a model that lacks the understanding encoder, and looks at pictures as codes.

        Raises:
            ValueError: it does so already.
        """
        if self.model.config.understanding is None:
            raise ValueError("this model has no understanding encoder to drop: it reads pictures as codes already.")
        with torch.device("meta"):
            model = AnyModal(replace(self.model.config, understanding=None), self.model.vocabulary)
        state = self.model.state_dict()
        model.load_state_dict({name: state[name] for name in model.state_dict()}, assign=True)
        if model.config.tie_embeddings:
            model.head.weight = model.embedding.weight
        return replace(self, model=model)

    def save(self, folder: str | Path) -> None:
        """Write beside the target, then rename: a full disk leaves what was there.

        Raises:
            OSError: the disk is full or read-only.
        """
        with staged_folder(Path(folder)) as partial:
            self._write(partial)

    def _write(self, folder: Path) -> None:
        save_weights(self.model.state_dict(), folder)
        self.image_tokenizer.save_pretrained(folder / "image_tokenizer")
        self.text_tokenizer.save(folder / "tokenizer.json")
        config = {
            "format": FORMAT,
            "model": to_dict(self.model.config),
            "vocabulary": self.model.vocabulary.to_dict(),
            "layout": to_dict(self.layout),
            "template": to_dict(self.template),
            "image_tokenizer": self.image_tokenizer.fingerprint,
        }
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json", self.generation)
        (folder / "README.md").write_text(self.card or "# A model trained with anymodal\n", encoding="utf-8")
        if self.origin is not None:
            (folder / ORIGIN).mkdir()
            write_json(folder / ORIGIN / "config.json", {"layout": self.origin.layout, "config": self.origin.config})
            for name, data in self.origin.files.items():
                (folder / ORIGIN / name).write_bytes(data)
            if self.origin.unused:
                save_weights(self.origin.unused, folder / ORIGIN)

    @classmethod
    def load(cls, folder: str | Path) -> "ModelFolder":
        """Read a folder.

        Raises:
            ValueError: a file, key or tensor is missing, unknown, mis-shaped or of another model.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(
                f"there is no model folder {folder}; give a folder that has a config.json, or an embedded name."
            )
        config = read_json(folder / "config.json")
        if config.get("format") != FORMAT:
            raise ValueError(
                f"{folder / 'config.json'} has format {config.get('format')!r}, this version reads {FORMAT}."
            )
        lacking = [key for key in ("model", "vocabulary", "layout", "template", "image_tokenizer") if key not in config]
        if lacking:
            raise ValueError(f"{folder / 'config.json'} lacks {', '.join(lacking)}.")
        parts: dict[str, Any] = dict(config)
        shape = from_dict(AnyModalConfig, parts["model"], "model")
        vocabulary = Vocabulary.from_dict(parts["vocabulary"])
        with torch.device("meta"):  # shapes without numbers, until the file has brought as many
            model = AnyModal(shape, vocabulary)
        load_weights(model, folder)
        if model.config.tie_embeddings:
            model.head.weight = model.embedding.weight
        image_tokenizer = ImageTokenizer.from_pretrained(folder / "image_tokenizer")
        if image_tokenizer.fingerprint != parts["image_tokenizer"]:
            raise ValueError(
                f"{folder} was made with image tokenizer {parts['image_tokenizer']}, the one inside is "
                f"{image_tokenizer.fingerprint}; its codes would mean other pictures. Copy the folder again."
            )
        text_tokenizer = TextTokenizer.load(folder / "tokenizer.json")
        if text_tokenizer.vocab_size > vocabulary.size:
            raise ValueError(
                f"the text tokenizer of {folder} has ids up to {text_tokenizer.vocab_size - 1}, the model "
                f"{vocabulary.size} ids; use the files of one model together."
            )
        card = folder / "README.md"
        return cls(
            model=model.eval(),
            text_tokenizer=text_tokenizer,
            image_tokenizer=image_tokenizer,
            layout=from_dict(PictureLayout, parts["layout"], "layout"),
            template=from_dict(ChatTemplate, parts["template"], "template"),
            generation=read_json(folder / "generation_config.json"),
            card=read_bytes(card, MAX_SIDE_BYTES).decode("utf-8") if card.is_file() else "",
            origin=_read_origin(folder / ORIGIN) if (folder / ORIGIN).is_dir() else None,
        )


def fingerprint_of(folder: Path) -> str:
    """Return sixteen hexadecimal digits over all files of a model folder but its card and its sampling defaults.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in ("README.md", "generation_config.json") or name.startswith("."):
            continue
        with path.open("rb") as file:
            digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _read_origin(folder: Path) -> Origin:
    stored: dict[str, Any] = dict(read_json(folder / "config.json"))
    if not isinstance(stored.get("layout"), str) or not isinstance(stored.get("config"), Mapping):
        raise ValueError(f"{folder / 'config.json'} must hold a layout and its config; copy the folder again.")
    beside = [path for path in folder.iterdir() if path.name not in ("config.json", WEIGHTS)]
    for path in beside:
        check_within(path)
    files = {path.name: read_bytes(path, MAX_SIDE_BYTES) for path in beside}
    unused = dict(TensorFiles.of_folder(folder)) if (folder / WEIGHTS).is_file() else {}
    return Origin(layout=stored["layout"], config=stored["config"], files=files, unused=unused)
