"""Say what a sample holds, or why it must be set aside."""

import json
from collections.abc import Mapping
from enum import IntFlag
from typing import Any

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp")
ROLES = ("user", "assistant")
PART_KINDS = ("text", "look", "draw")


class Holds(IntFlag):
    """What a sample holds; a bit each, so that an index stores it in a byte."""

    PICTURE = 1
    CAPTION = 2
    TURNS = 4
    CODES = 8
    QUESTIONS = 16


class SetAside(ValueError):  # noqa: N818 (what happens, as a noun)
    """Say why a sample is set aside: `reason` is what it is counted under, the message may say more."""

    def __init__(self, reason: str, more: str = "") -> None:
        """Hold a reason of a few words."""
        super().__init__(f"{reason} ({more})" if more else reason)
        self.reason = reason


def check_members(
    members: Mapping[str, bytes], *, image_keys: tuple[str, ...] = IMAGE_KEYS, verify_pictures: bool = True
) -> Holds:
    """Check one sample (extension -> bytes) and return what it holds.

    Raises SetAside for a caption that is empty or not UTF-8, broken json or turns, a picture that cannot be decoded,
    and a sample without picture, caption, turns or codes.

    >>> check_members({"txt": b"a red apple"})
    <Holds.CAPTION: 2>
    """
    holds = Holds(0)
    if "txt" in members:
        check_caption(members["txt"])
        holds |= Holds.CAPTION
    if "json" in members:
        record = read_record(members["json"])
        holds |= check_record(record, members)
    for extension, data in members.items():
        if extension.rpartition(".")[2] in image_keys:
            if verify_pictures:
                check_picture(data)
            if extension in image_keys:
                holds |= Holds.PICTURE
        elif extension.rpartition(".")[2] == "npy":
            holds |= Holds.CODES
    if not holds & ~Holds.QUESTIONS:  # about nothing
        raise SetAside("no picture, caption or turns", f"only {', '.join(members) or 'nothing'}")
    return holds


def check_caption(data: bytes) -> str:
    """Return the caption that a .txt member holds."""
    try:
        caption = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SetAside("caption not UTF-8", str(error)) from error
    if not caption.strip():
        raise SetAside("caption empty")
    return caption


def read_record(data: bytes) -> dict[str, Any]:
    """Return the object that a .json member holds."""
    try:
        record = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SetAside("json broken", str(error)) from error
    if not isinstance(record, dict):
        raise SetAside("json broken", f"a {type(record).__name__}, not an object")
    return record


def check_record(record: Mapping[str, Any], members: Mapping[str, bytes]) -> Holds:
    """Check the parts of a record that have a meaning here; foreign fields are left alone."""
    holds = Holds(0)
    captions = record.get("captions", [])
    if not (isinstance(captions, list) and all(is_text(text) and text.strip() for text in captions)):
        raise SetAside("captions broken", "a list of texts that are not empty was expected")
    if captions:
        holds |= Holds.CAPTION
    questions = record.get("questions", [])
    check_questions(questions)
    if questions:
        holds |= Holds.QUESTIONS
    turns = record.get("turns")
    if turns is not None:
        check_turns(turns, members)
        holds |= Holds.TURNS
    return holds


def check_questions(questions: Any) -> None:
    """Check that every question is a text with an answer."""
    if not isinstance(questions, list) or not all(
        isinstance(question, dict) and is_text(question.get("question")) and is_text(question.get("answer"))
        for question in questions
    ):
        raise SetAside("questions broken", 'a list of {"question": ..., "answer": ...} was expected')


def check_turns(turns: Any, members: Mapping[str, bytes]) -> None:
    """Check chat turns: roles, parts, and that the pictures they name are there, or codes in their stead."""
    if not isinstance(turns, list) or not turns:
        raise SetAside("turns broken", "a list with at least one turn was expected")
    for turn in turns:
        parts = turn.get("parts") if isinstance(turn, dict) and turn.get("role") in ROLES else None
        if not isinstance(parts, list) or not parts:
            raise SetAside("turns broken", f"a turn has a role of {ROLES} and parts, got {str(turn)[:80]}")
        for part in parts:
            if not isinstance(part, dict) or len(part) != 1 or next(iter(part)) not in PART_KINDS:
                raise SetAside("turns broken", f"a part is one of {PART_KINDS}, got {str(part)[:80]}")
            kind, value = next(iter(part.items()))
            if not is_text(value):
                raise SetAside("turns broken", f"{kind} holds a text, got {str(value)[:80]!r}")
            if kind != "text" and value not in members and not any(name.endswith(".npy") for name in members):
                raise SetAside("member missing", f"a turn names {value!r}, the sample has {', '.join(members)}")


def is_text(value: Any) -> bool:
    """Say whether a value is a text that UTF-8 can hold (json may carry lone surrogates)."""
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


def check_picture(data: bytes) -> None:
    """Decode a picture to see that it can be decoded."""
    from anymodal.data.pictures import decode_picture  # Pillow is not needed to read an index

    try:
        decode_picture(data)
    except ValueError as error:
        raise SetAside(f"picture {getattr(error, 'reason', 'broken')}", str(error)) from error
