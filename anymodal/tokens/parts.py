"""What a document is made of: text, pictures in three roles, turns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from torch import Tensor

Picture = Image.Image | Tensor
"""An image, or pixels [3, h, w] in [-1, 1], or whole-number codes [rows, columns]."""


@dataclass(frozen=True, eq=False)
class Look:
    """A picture that is read: through the understanding path where the model has one, else as codes; never a target.

    >>> import torch
    >>> Look(torch.zeros(3, 64, 64)).picture.shape
    torch.Size([3, 64, 64])
    """

    picture: Picture


@dataclass(frozen=True, eq=False)
class Draw:
    """A picture that is to be drawn: its codes are targets.

    >>> import torch
    >>> Draw(torch.zeros(8, 8, dtype=torch.long)).picture.shape
    torch.Size([8, 8])
    """

    picture: Picture


@dataclass(frozen=True, eq=False)
class Codes:
    """A picture that stands in the context as codes, without loss: what is edited, or what was drawn earlier.

    >>> import torch
    >>> Codes(torch.zeros(8, 8, dtype=torch.long)).picture.shape
    torch.Size([8, 8])
    """

    picture: Picture


@dataclass(frozen=True)
class Say:
    """Text that is a target.

    >>> Say(" an apple").text
    ' an apple'
    """

    text: str


Part = str | Say | Look | Draw | Codes | Image.Image
"""What a document is made of; a bare image means `Look`."""


@dataclass(frozen=True, eq=False)
class Turn:
    """What one side of a conversation says; text in an assistant's turn is a target.

    Raises:
        ValueError: an unknown role, or parts that are no tuple of parts.

    >>> Turn("user", ("a red apple",)).role
    'user'
    """

    role: Literal["user", "assistant"]
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        """Refuse what no template has."""
        if self.role not in ("user", "assistant"):
            raise ValueError(f"the role of a turn must be 'user' or 'assistant', not {self.role!r}")
        if not isinstance(self.parts, tuple | list):
            raise ValueError(f"the parts of a turn must be a tuple, not {self.parts!r}; write ({self.parts!r},)")


Document = Sequence[Part | Turn]
"""A list of parts, or a list of turns, never of both; a str is a document of one part."""


def as_turns(document: Document, *, complete: bool) -> list[Turn] | list[Part]:
    """Say who says what in a plain list of parts.

    A complete document (training): lone text is a plain document, all of it a target; else what stands before the
    first target (`Draw`, `Say`) is the user's turn and the rest the assistant's, and where there is none the last part,
    a str, becomes the target. A prompt: all parts are the user's turn. A prompt ends in an open assistant's turn.

    Raises:
        ValueError: parts beside turns, or a complete document without a target.

    >>> [turn.role for turn in as_turns(["What is it?", " an apple"], complete=True)]
    ['user', 'assistant']
    """
    entries: list[Part | Turn] = [document] if isinstance(document, str) else list(document)
    turns = [entry for entry in entries if isinstance(entry, Turn)]
    parts = [entry for entry in entries if not isinstance(entry, Turn)]
    if turns and parts:
        raise ValueError(f"a document is a list of parts or of turns, not of both; put {parts[0]!r} into a Turn")
    if not complete:
        turns = turns or [Turn("user", tuple(parts))]
        return turns if turns[-1].role == "assistant" else [*turns, Turn("assistant", ())]
    if turns:
        return turns
    if len(parts) == 1 and isinstance(parts[0], str | Say):
        plain: list[Part] = [Say(parts[0]) if isinstance(parts[0], str) else parts[0]]
        return plain
    first = next((index for index, part in enumerate(parts) if isinstance(part, Draw | Say)), len(parts) - 1)
    if first >= 0 and isinstance(parts[first], str):
        parts[first] = Say(str(parts[first]))
    if first < 0 or not isinstance(parts[first], Draw | Say):
        raise ValueError(
            "a training document needs a target: Draw(...), Say(...), or text as its last part; "
            f"it holds: {', '.join(type(part).__name__ for part in parts) or 'nothing'}"
        )
    return [Turn("user", tuple(parts[:first])), Turn("assistant", tuple(parts[first:]))]
