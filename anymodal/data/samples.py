"""Samples of shards to documents: one task, one reading."""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anymodal.data.fitting import fitted_size
from anymodal.data.pictures import RGB, BadPicture, decode_rgb, fit_of, scaled, to_planes
from anymodal.data.shards import Sample
from anymodal.tokens.document import Codes, Document, Draw, Look, Say, Turn
from anymodal.tokens.picture_config import FitKind, PictureFit

Task = Literal["draw", "answer", "describe", "text", "chat"]
TASKS: tuple[Task, ...] = ("draw", "answer", "describe", "text", "chat")
DESCRIBE = "Describe this picture."
PICTURES = ("jpg", "jpeg", "png", "webp")
CODES = re.compile(r"(?:.+[.])?codes[.](\w+)[.]npy")
VIEWS = 3  # axes of codes that hold several views of a picture
NPY = 10  # bytes before the header of an npy file


class UnfitSample(ValueError):  # noqa: N818  (what it is, as a noun)
    """A sample that lacks what a task needs; `reason` is counted."""

    def __init__(self, reason: str) -> None:
        """Keep the reason."""
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How samples become documents.

    `look_size` is the side in pixels of looked-at pictures, None where pictures are read as codes. `fingerprint` names
    the image tokenizer whose codes the shards carry. `prompt_dropout` is the share of drawings whose prompt is left
    empty (classifier-free guidance, arXiv:2207.12598).
    """

    fingerprint: str
    look_size: int | None
    look_fit: PictureFit = PictureFit(kind="pad")
    prompt_dropout: float = 0.1
    questions_per_picture: int = 1


def document_of(sample: Sample, task: str, reading: Reading, random: np.random.Generator) -> Document:
    """Make the document that `task` learns from.

    Raises:
        UnfitSample: the sample lacks a caption, codes, questions or turns.
    """
    if task == "draw":
        prompt = "" if random.random() < reading.prompt_dropout else _choice(captions_of(sample), random, "no caption")
        drawn = Draw(codes_of(sample, reading, random=random))
        return [Turn(role="user", parts=(prompt,)), Turn(role="assistant", parts=(drawn,))]
    if task == "answer":
        return _questions(sample, reading, random)
    if task == "describe":
        said = _choice(captions_of(sample), random, "no caption")
        return [Turn("user", (_looked(sample, reading), DESCRIBE)), Turn("assistant", (said,))]
    if task == "text":
        return [Say(_choice(captions_of(sample), random, "no caption"))]
    if task == "chat":
        return _turns(sample, reading)
    raise ValueError(f"a task must be one of {', '.join(TASKS)}, got {task!r}.")


def captions_of(sample: Sample) -> list[str]:
    """Return every caption of a sample, the main one first, each once."""
    main = [sample.members["txt"].decode("utf-8").strip()] if "txt" in sample.members else []
    more = details_of(sample).get("captions", [])
    return list(dict.fromkeys(main + [str(caption) for caption in more]))


def details_of(sample: Sample) -> Mapping[str, Any]:
    """Return the sample's json, empty where it has none."""
    data = json.loads(sample.members["json"]) if "json" in sample.members else {}
    return data if isinstance(data, dict) else {}


def picture_names(sample: Sample) -> list[str]:
    """Return the members that are pictures: "webp", the main one, and what turns show beside it, such as "1.jpg"."""
    return [name for name in sample.members if name.rpartition(".")[2] in PICTURES]


def codes_name(picture: str, fingerprint: str) -> str:
    """Return the member that holds the codes of a picture.

    >>> codes_name("webp", "0123"), codes_name("1.jpg", "0123")
    ('codes.0123.npy', '1.codes.0123.npy')
    """
    stem, dot, _ = picture.rpartition(".")
    return f"{stem}{dot}codes.{fingerprint}.npy"


def fingerprints_of(sample: Sample) -> set[str]:
    """Return the fingerprints of the image tokenizers whose codes the sample carries."""
    return {match[1] for name in sample.codes or sample.members if (match := CODES.fullmatch(name))}


def codes_of(
    sample: Sample, reading: Reading, picture: str = "", random: np.random.Generator | None = None
) -> Int[Tensor, "rows columns"]:
    """Return the codes of a picture of the sample, of the main one where none is named.

    Of several views the first, which is the plain one, or any where `random` is given.

    Raises:
        UnfitSample: it carries none of this image tokenizer.
    """
    name = codes_name(picture, reading.fingerprint)
    codes = sample.codes.get(name)
    if codes is None:
        if name not in sample.members:
            raise UnfitSample("no codes")
        codes = _array_of(sample.members[name])
    if codes.ndim == VIEWS:
        codes = codes[0 if random is None else int(random.integers(len(codes)))]
    return torch.from_numpy(codes.astype(np.int64))


def _array_of(data: bytes) -> NDArray[Any]:
    """Read an npy member; what its header says is parsed once, since thousands say the same."""
    length = NPY + int.from_bytes(data[8:NPY], "little")
    if data[:8] != b"\x93NUMPY\x01\0":
        return cast(NDArray[Any], np.load(io.BytesIO(data), allow_pickle=False))
    shape, fortran, kind = _npy_header(data[8:length])
    flat = np.frombuffer(data, kind, offset=length, count=math.prod(shape))
    return flat.reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    shape, fortran, kind = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    if kind.hasobject:
        raise ValueError("an npy member must hold numbers, got objects, which could run code; write it again")
    return shape, fortran, kind


def picture_bytes(sample: Sample, picture: str = "") -> bytes:
    """Return a picture of the sample as stored, the main one where none is named.

    Raises:
        UnfitSample: it has none.
    """
    for extension in (picture,) if picture else PICTURES:
        if extension in sample.members:
            return sample.members[extension]
    raise UnfitSample("no picture")


def pixels_of(
    sample: Sample, size: int, fit: PictureFit | FitKind, picture: str = "", *, factor: int = 1
) -> Float[Tensor, "3 h w"]:
    """Decode a picture of the sample, the main one where none is named, to `size` x `size` pixels in [-1, 1].

    A fit of kind "area" chooses its own size, a multiple of `factor`.

    Raises:
        UnfitSample: it has none, or it cannot be decoded.
    """
    fit = fit_of(fit) if isinstance(fit, str) else fit
    decoded = rgb_of(sample, picture)
    own = decoded.size[::-1] if isinstance(decoded, Image.Image) else decoded.shape[:2]
    return scaled(to_planes(decoded, *target_size(own, size, fit, factor), fit=fit), fit.scale)


def rgb_of(sample: Sample, picture: str = "") -> RGB:
    """Decode a picture of the sample, the main one where none is named.

    Raises:
        UnfitSample: it has none, or it cannot be decoded.
    """
    try:
        return decode_rgb(picture_bytes(sample, picture))
    except BadPicture as error:
        raise UnfitSample(error.reason) from error


def target_size(own: tuple[int, int], size: int, fit: PictureFit, factor: int) -> tuple[int, int]:
    """Return the height and width that a picture of such sides is fitted to: its own for kind "area", else `size`."""
    return fitted_size(own, fit, factor) if fit.kind == "area" else (size, size)


def _looked(sample: Sample, reading: Reading, picture: str = "") -> Look | Codes:
    if reading.look_size is None:
        return Codes(codes_of(sample, reading, picture))
    return Look(pixels_of(sample, reading.look_size, reading.look_fit, picture))


def _questions(sample: Sample, reading: Reading, random: np.random.Generator) -> list[Turn]:
    questions = details_of(sample).get("questions", [])
    if not questions:
        raise UnfitSample("no question")
    count = min(reading.questions_per_picture, len(questions))
    turns: list[Turn] = []
    for i in random.choice(len(questions), size=count, replace=False):
        asked = (str(questions[i]["question"]),)
        turns.append(Turn(role="user", parts=asked if turns else (_looked(sample, reading), *asked)))
        turns.append(Turn(role="assistant", parts=(str(questions[i]["answer"]),)))
    return turns


def _turns(sample: Sample, reading: Reading) -> list[Turn]:
    turns = details_of(sample).get("turns", [])
    if not turns:
        raise UnfitSample("no turns")
    made = []
    for turn in turns:
        parts: list[Any] = []
        for part in turn["parts"]:
            if "text" in part:
                parts.append(str(part["text"]))
            elif "look" in part:
                parts.append(_looked(sample, reading, str(part["look"])))
            else:
                parts.append(Draw(codes_of(sample, reading, str(part["draw"]))))
        made.append(Turn(role=turn["role"], parts=tuple(parts)))
    return made


def _choice(options: Sequence[str], random: np.random.Generator, reason: str) -> str:
    if not options:
        raise UnfitSample(reason)
    return options[int(random.integers(len(options))) if len(options) > 1 else 0]  # one of one takes no random number
