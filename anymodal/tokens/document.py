"""Interleaved parts and chat turns <-> one sequence of ids that knows what is a target."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anymodal.tokens.config import ChatTemplate, PictureLayout
from anymodal.tokens.grammar import header_text, spell_sizes
from anymodal.tokens.parts import Codes, Document, Draw, Look, Part, Picture, Say, Turn, as_turns
from anymodal.tokens.sequence import SequenceWriter, TokenSequence
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary

__all__ = [
    "Codes",
    "Document",
    "DocumentEncoder",
    "Draw",
    "Look",
    "Part",
    "Picture",
    "Say",
    "TokenSequence",
    "Turn",
    "as_turns",
]


class DocumentEncoder:
    """Write documents as ids and read sampled ids back.

    Pictures must already be what the sequence needs: codes [rows, columns] for `Draw` and `Codes`; for `Look` pixels
    [3, h, w], or codes where `look_tokens` is None because the model has no understanding path.

    Raises:
        ValueError: layout or template need a special that the vocabulary lacks, or the tokenizer does not fit.

    >>> tokenizer = TextTokenizer.learn(["a red apple"], vocab_size=280)
    >>> vocabulary = Vocabulary.build(text_size=280, specials=tokenizer.specials, codebook_size=16)
    >>> encoder = DocumentEncoder(text_tokenizer=tokenizer, vocabulary=vocabulary, look_tokens=None,
    ...                           layout=PictureLayout(sizes=((2, 2),)), template=ChatTemplate())
    >>> sequence = encoder.encode(["a red apple", Draw(torch.tensor([[1, 2], [3, 4]]))])
    >>> sequence.ids[sequence.loss].tolist()
    [5, 281, 282, 283, 284, 6, 2]
    >>> encoder.decode(sequence.ids)[1].picture.tolist()
    [[1, 2], [3, 4]]
    """

    def __init__(
        self,
        *,
        text_tokenizer: TextTokenizer,
        vocabulary: Vocabulary,
        layout: PictureLayout,
        template: ChatTemplate,
        look_tokens: int | None,
    ) -> None:
        if text_tokenizer.vocab_size > vocabulary.size:
            raise ValueError(
                f"the text tokenizer has ids up to {text_tokenizer.vocab_size - 1}, but the vocabulary ends at "
                f"{vocabulary.size - 1}; use the tokenizer that the model was made with"
            )
        if look_tokens is not None and look_tokens < 1:
            raise ValueError(f"look_tokens must be at least 1, or None without understanding path, not {look_tokens}")
        self.text_tokenizer, self.vocabulary = text_tokenizer, vocabulary
        self.layout, self.template, self.look_tokens = layout, template, look_tokens
        self._control = frozenset(vocabulary.specials.values()).union(
            *(vocabulary.table(modality).tolist() for modality in vocabulary.modalities)
        )
        self._names = {index: name for name, index in vocabulary.specials.items()}
        self._table = vocabulary.table().numpy()  # it is looked up in faster than a tensor
        self._boi, self._eoi = vocabulary.special("boi"), vocabulary.special("eoi")
        self._look = [] if look_tokens is None else [vocabulary.special("look")] * look_tokens
        self._sizes = frozenset(layout.sizes)
        self._img = vocabulary.special("img") if layout.kind == "rows" else None
        self._tail = [vocabulary.special("eof"), self._eoi] if layout.kind == "rows" else [self._eoi]
        self._eol = vocabulary.special("eol") if layout.kind == "rows" else None
        self._begin, self._plain_end = self._resolve(template.begin), self._resolve(template.plain_end)
        self._system, self._answered = self._resolve(template.system), self._resolve(template.answered)
        self._around = {
            "user": (self._resolve(template.user[0]), self._resolve(template.user[1])),
            "assistant": (self._resolve(template.assistant[0]), self._resolve(template.assistant[1])),
        }
        self._bare: dict[str, tuple[list[list[int] | str], list[list[int] | str]]] = {
            "user": ([], []),
            "assistant": ([], self._around["assistant"][1]),
        }

    def encode(self, document: Document, *, complete: bool = True) -> TokenSequence:
        """Write a document (or, with `complete=False`, a prompt whose assistant's turn stays open) as ids.

        Raises:
            ValueError: no target in a complete document, or a picture that is not what the sequence needs.
        """
        return self._write(document, complete=complete).sequence()

    def prompt_image(self, document: Document, *, size: tuple[int, int] | None = None) -> TokenSequence:
        """Write a prompt that a picture follows: it ends in BOI or, in `rows` with a `size`, in header and IMG.

        Raises:
            ValueError: the layout does not hold `size`.
        """
        writer = self._write(document, complete=False, draws=True)
        writer.add([self._boi] if size is None else self._head(self._held(size)), loss=False)
        return writer.sequence()

    def unconditional(self, prompt: TokenSequence) -> TokenSequence:
        """Return what a drawing from `prompt` is guided away from, as the template says.

        Raises:
            ValueError: the template guides away from the empty prompt: write that with `prompt_image`.
        """
        if self.template.unconditional == "bare":
            writer = SequenceWriter(self.text_ids)
            writer.template(self._begin, loss=False)
            writer.add([self._boi], loss=False)
            return writer.sequence()
        if self.template.unconditional != "padded":
            raise ValueError('this template guides away from the empty prompt; write it with prompt_image([""])')
        kept = torch.tensor([self.vocabulary.special("bos"), self._boi])
        ids = torch.where(torch.isin(prompt.ids, kept), prompt.ids, self.vocabulary.special("pad"))
        return TokenSequence(ids, prompt.loss, ())

    def pictures_alone(self, prompt: TokenSequence) -> TokenSequence | None:
        """Return the pictures of a prompt without its text, for three-way guidance; None where it shows none.

        Headers of pictures are text and go too.
        """
        codes = self.vocabulary.is_code(prompt.ids)
        if not prompt.looks and not bool(codes.any()):
            return None
        names = ("bos", "boi", "eoi", "look", "img", "eol", "eof")
        frame = [self.vocabulary.special(name) for name in names if self.vocabulary.has_special(name)]
        kept = codes | torch.isin(prompt.ids, torch.tensor(frame))
        place = kept.cumsum(0) - 1
        looks = tuple((int(place[start]), pixels) for start, pixels in prompt.looks)
        return TokenSequence(prompt.ids[kept], prompt.loss[kept], looks)

    def decode(self, ids: Int[Tensor, " n"] | Sequence[int]) -> list[str | Codes]:
        """Read sampled ids: pieces of text and whole grids of codes, in order; other specials are left out.

        The ids may start behind a BOI or an IMG that stood in the prompt.

        Raises:
            ValueError: codes that form no whole grid of the layout.
        """
        sequence = torch.as_tensor(ids, dtype=torch.long).cpu()
        is_code = self.vocabulary.is_code(sequence)
        codes = torch.full_like(sequence, -1)
        codes[is_code] = self.vocabulary.to_codes(sequence[is_code])
        reader = _Reader(self)
        for index, code in zip(sequence.tolist(), codes.tolist(), strict=True):
            reader.read(index, code, self._names.get(index))
        return reader.close()

    def _write(self, document: Document, *, complete: bool, draws: bool = False) -> SequenceWriter:
        writer = SequenceWriter(self.text_ids)
        writer.template(self._begin, loss=False)
        entries = as_turns(document, complete=complete)
        draws = draws or any(isinstance(part, Draw) for entry in entries for part in _parts_of(entry))
        around = self._bare if draws and self.template.drawing == "bare" else self._around
        if not draws:
            writer.template(self._system, loss=False)
        for number, entry in enumerate(entries):
            if not isinstance(entry, Turn):
                self._write_part(writer, entry, loss=True)
                continue
            opening, closing = around[entry.role]
            answers, last = entry.role == "assistant", number == len(entries) - 1
            writer.template(opening, loss=False)
            self._write_turn(writer, entry)
            if answers and not last and self._answered:
                writer.template(self._answered, loss=False)
            elif complete or not last:
                writer.template(closing, loss=answers)
        if not isinstance(entries[0], Turn):
            writer.template(self._plain_end, loss=True)
        return writer

    def _write_turn(self, writer: SequenceWriter, turn: Turn) -> None:
        answers, template = turn.role == "assistant", self.template
        for place, part in enumerate(turn.parts):
            if template.before_answer and answers and not place and isinstance(part, str | Say):
                writer.text(template.before_answer, loss=True)
            if template.beside_look and place and (_is_look(part) or _is_look(turn.parts[place - 1])):
                writer.text(template.beside_look, loss=False)
            self._write_part(writer, part, loss=answers)

    def _write_part(self, writer: SequenceWriter, part: Part, *, loss: bool) -> None:
        if isinstance(part, str):
            writer.text(part, loss=loss)
        elif isinstance(part, Say):
            writer.text(part.text, loss=True)
        elif isinstance(part, Draw | Codes):
            writer.picture(*self.picture_ids(part.picture), loss=isinstance(part, Draw))
        elif isinstance(part, Look | Image.Image):
            self._write_look(writer, part.picture if isinstance(part, Look) else part)
        else:
            raise ValueError(f"a part of a document is text, Say, Look, Draw, Codes or an image, not {part!r}")

    def _write_look(self, writer: SequenceWriter, picture: Picture) -> None:
        if self.look_tokens is None:
            writer.picture(*self.picture_ids(picture), loss=False)
            return
        if not isinstance(picture, Tensor) or not picture.is_floating_point() or picture.shape[:-2] != (3,):
            got = f"{picture.dtype} {list(picture.shape)}" if isinstance(picture, Tensor) else type(picture).__name__
            raise ValueError(f"a looked-at picture must be pixels [3, h, w] here, not {got}; use to_pixels")
        writer.add([self._boi], loss=False)
        writer.look(self._look, picture)
        writer.add([self._eoi], loss=False)

    def picture_ids(self, picture: Picture) -> tuple[list[int], NDArray[np.int64], list[int]]:
        """Write codes [rows, columns] as the whole block from BOI to EOI: what opens it, its rows, what closes it.

        Raises:
            ValueError: no codes, a grid that the layout does not hold, or a code that the vocabulary lacks.
        """
        if not isinstance(picture, Tensor) or picture.is_floating_point() or picture.dtype == torch.bool:
            kind = f"a tensor of {picture.dtype}" if isinstance(picture, Tensor) else type(picture).__name__
            raise ValueError(f"a picture must be whole-number codes here, not {kind}; use the image tokenizer first")
        head = self._head(self._held(tuple(picture.shape)))
        codes = picture.numpy(force=True)
        if codes.astype(np.uint64).max() >= len(self._table):  # which codes below 0 exceed as unsigned numbers
            self.vocabulary.to_ids(picture)  # says what is wrong
        ids = self._table[codes]
        if self._eol is not None:
            ids = np.concatenate([ids, np.full_like(ids[:, :1], self._eol)], axis=1)
        return head, ids.ravel(), self._tail

    def text_ids(self, text: str) -> list[int]:
        """Write text; none of its ids is a special or a code.

        Raises:
            ValueError: the text is not Unicode text, or the tokenizer does not keep it apart from control tokens.
        """
        ids = self.text_tokenizer.encode(text)
        if not self._control.isdisjoint(ids):
            wrong = self.text_tokenizer.piece(next(index for index in ids if index in self._control))
            raise ValueError(f"text must not hold a control token, but {wrong!r} is one; remove it")
        return ids

    def holds(self, size: tuple[int, ...]) -> bool:
        """Tell whether a picture may have this grid (rows, columns)."""
        return size in self._sizes

    def _held(self, size: tuple[int, ...]) -> tuple[int, int]:
        if not self.holds(size):
            held, got = spell_sizes(self.layout.sizes), "x".join(map(str, size))
            raise ValueError(f"a picture of this model has {held} codes, not {got}; resize the picture")
        return size[0], size[1]

    def _head(self, size: tuple[int, int]) -> list[int]:
        """Write what stands before the first code."""
        return [self._boi] if self._img is None else [self._boi, *self.text_ids(header_text(size)), self._img]

    def _resolve(self, entries: Sequence[str]) -> list[list[int] | str]:
        """Turn the entries of a template into special ids and literal text."""
        named = [(entry, re.fullmatch(r"<(\w+)>", entry)) for entry in entries]
        return [[self.vocabulary.special(name[1])] if name else entry for entry, name in named]


def _parts_of(entry: Part | Turn) -> Sequence[Part]:
    return entry.parts if isinstance(entry, Turn) else (entry,)


def _is_look(part: Part) -> bool:
    return isinstance(part, Look | Image.Image)


class _Reader:
    """Cut sampled ids into text and grids."""

    def __init__(self, encoder: DocumentEncoder) -> None:
        self.encoder = encoder
        self.pieces: list[str | Codes] = []
        self.text: list[int] = []
        self.codes: list[int] = []
        self.row_ends: list[int] = []
        self.header: str | None = None

    def read(self, index: int, code: int, name: str | None) -> None:
        if code >= 0:
            self.end_text()
            self.codes.append(code)
        elif name is None:
            self.end_picture()
            self.text.append(index)
        elif name == "img":  # what stood before it was the header
            self.header = self.encoder.text_tokenizer.decode(self.text)
            self.text = []
        elif name == "eol":
            self.row_ends.append(len(self.codes))
        elif name != "eof":
            self.end_text()
            self.end_picture()

    def close(self) -> list[str | Codes]:
        self.end_text()
        self.end_picture()
        return self.pieces

    def end_text(self) -> None:
        if self.text:
            self.pieces.append(self.encoder.text_tokenizer.decode(self.text))
            self.text = []

    def end_picture(self) -> None:
        layout = self.encoder.layout
        if not self.codes and not self.row_ends and self.header is None:
            return
        rows, columns = layout.sizes[0]
        whole = len(self.codes) == rows * columns
        if layout.kind == "rows":
            rows, columns = len(self.row_ends), self.row_ends[0] if self.row_ends else 0
            named = self.header in (None, header_text((rows, columns)))
            whole = named and self.encoder.holds((rows, columns)) and len(self.codes) == rows * columns
            whole = whole and self.row_ends == list(range(columns, rows * columns + 1, columns))
        if not whole:
            raise ValueError(
                f"{len(self.codes)} codes in {len(self.row_ends)} closed rows form no whole picture of this layout; "
                "sample with the grammar and let it finish"
            )
        self.pieces.append(Codes(torch.tensor(self.codes, dtype=torch.long).reshape(rows, columns)))
        self.codes, self.row_ends, self.header = [], [], None
