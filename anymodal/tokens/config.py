"""Configuration of the token layer; light to import, so that a command line can be made from it."""

from dataclasses import dataclass
from typing import Literal

SPECIALS = ("pad", "bos", "eos", "user", "assistant", "boi", "eoi", "img", "eol", "eof", "look")
"""Role names of the special ids of models made here, in the order of their ids."""


@dataclass(frozen=True, kw_only=True)
class PictureLayout:
    """Say how a grid of codes is written as a sequence.

    `fixed`: BOI, the codes row by row, EOI. `rows` (Emu3, arXiv:2409.18869): BOI, "rows*columns" as text, IMG, each row
    closed by EOL, EOF, EOI; we spell the header with the model's own text tokenizer.

    Args:
        kind: `fixed` for one grid, `rows` for many.
        sizes: allowed grids as (rows, columns), counted in codes; `fixed` takes exactly one.

    Raises:
        ValueError: an unknown kind, no size, a size below 1, a size given twice, or several sizes for `fixed`.

    >>> PictureLayout(kind="rows", sizes=((2, 3), (3, 2))).sizes
    ((2, 3), (3, 2))
    """

    kind: Literal["fixed", "rows"] = "fixed"
    sizes: tuple[tuple[int, int], ...] = ((8, 8),)

    def __post_init__(self) -> None:
        """Refuse a layout that no picture can have."""
        if self.kind not in ("fixed", "rows"):
            raise ValueError(f"kind of a picture layout must be 'fixed' or 'rows', not {self.kind!r}")
        sizes = tuple(_pair(size) for size in self.sizes)
        object.__setattr__(self, "sizes", sizes)
        if not sizes:
            raise ValueError("a picture layout needs at least one size (rows, columns); sizes is empty")
        if len(set(sizes)) < len(sizes):
            twice = next(size for size in sizes if sizes.count(size) > 1)
            raise ValueError(f"each size of a picture layout may stand once, but {twice} stands twice; remove one")
        if self.kind == "fixed" and len(sizes) > 1:
            raise ValueError(f"a fixed layout holds one size, not {len(sizes)}: {sizes}; use kind 'rows' for several")


def _pair(size: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(size, tuple | list) or [type(length) for length in size] != [int, int] or min(size) < 1:
        raise ValueError(f"a size of a picture layout is two whole numbers (rows, columns) from 1 on, not {size!r}")
    rows, columns = size
    return rows, columns


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    r"""Say what stands around the turns of a conversation.

    An entry such as "<bos>" stands for the special id of that role name; any other string is literal text. Literal text
    is encoded together with the text beside it, as one string, unless only one of the two carries loss.

    Args:
        begin: what opens every sequence.
        user: what opens and what closes a user's turn.
        assistant: what opens and what closes an assistant's turn; the closing carries loss.
        plain_end: what closes a document without turns; carries loss.
        system: what stands behind `begin` where no picture is drawn.
        before_answer: what stands before the text of an assistant's turn and is written by the model; carries loss.
        beside_look: what parts a looked-at picture from what stands beside it in a turn.
        answered: what closes an assistant's turn that another turn follows, without loss; empty for its usual closing.
        drawing: a document that draws is made of turns as any other (`turns`), or of its parts alone, closed as an
            assistant's turn is (`bare`, Emu3).
        unconditional: what a drawing is guided away from: the empty prompt (`empty`), the prompt with all ids but BOS
            and BOI exchanged for padding (`padded`, Janus), or `begin` and BOI alone (`bare`, Chameleon).

    Raises:
        ValueError: an entry that is not a string or is empty.

    >>> ChatTemplate(user=(("User: ",), ("\n\n",)), assistant=(("Assistant:",), ("<eos>",))).user[0]
    ('User: ',)
    """

    begin: tuple[str, ...] = ("<bos>",)
    user: tuple[tuple[str, ...], tuple[str, ...]] = (("<user>",), ())
    assistant: tuple[tuple[str, ...], tuple[str, ...]] = (("<assistant>",), ("<eos>",))
    plain_end: tuple[str, ...] = ("<eos>",)
    system: tuple[str, ...] = ()
    before_answer: str = ""
    beside_look: str = ""
    answered: tuple[str, ...] = ()
    drawing: Literal["turns", "bare"] = "turns"
    unconditional: Literal["empty", "padded", "bare"] = "empty"

    def __post_init__(self) -> None:
        """Refuse entries that are not text and freeze the lists that a file gives."""
        for name in ("begin", "plain_end", "system", "answered"):
            object.__setattr__(self, name, _entries(getattr(self, name), name))
        for name in ("user", "assistant"):
            around = getattr(self, name)
            if not isinstance(around, tuple | list) or len(around) != 2:  # noqa: PLR2004
                raise ValueError(f"{name} of a chat template must be a pair (what opens, what closes), not {around!r}")
            object.__setattr__(self, name, tuple(_entries(entries, name) for entries in around))


def _entries(entries: tuple[str, ...], name: str) -> tuple[str, ...]:
    if not isinstance(entries, tuple | list):
        raise ValueError(f"{name} of a chat template must be a tuple of strings, not {entries!r}; write ({entries!r},)")
    for entry in entries:
        if not isinstance(entry, str) or not entry:
            raise ValueError(f"an entry of {name} of a chat template must be a string that is not empty, not {entry!r}")
    return tuple(entries)
