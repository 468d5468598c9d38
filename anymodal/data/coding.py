"""Pictures to codes: they pass the image tokenizer once, not in every epoch."""

import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anymodal.data.index import BadSample, ShardIndex
from anymodal.data.pictures import decode_picture, to_pixels
from anymodal.data.samples import codes_name, picture_bytes, picture_names, target_size
from anymodal.data.shards import Sample
from anymodal.tokens.image import ImageTokenizer

SMALL = 2**16
SMALLEST_WINDOW = 0.8  # share of each side that a further view of a picture shows at least

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How pictures become codes.

    `size` is the side in pixels to which the tokenizer's own fit brings pictures, save for kind "area", which keeps
    their shape. `views` above 1 also encode windows of a picture, always the same ones: a part of it at a random place,
    so that what is drawn is seen at several scales; the first view is the whole picture.

    Raises:
        ValueError: a number below 1.
    """

    tokenizer: ImageTokenizer
    size: int
    views: int = 1
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("size", "views", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def coded_samples(  # noqa: PLR0913 (each option has a run that needs it)
    index: ShardIndex,
    numbers: Sequence[int],
    *,
    tokenizer: ImageTokenizer,
    size: int,
    views: int = 1,
    batch_size: int = 64,
    keep_pictures: bool = True,
) -> Iterator[Sample]:
    """Yield the samples of an index with a member `codes.FINGERPRINT.npy`; samples without a picture pass unchanged.

    Codes of a picture beside the main one, such as `1.jpg`, are named after it: `1.codes.FINGERPRINT.npy`. They are
    [rows, columns], or [views, rows, columns] where there are several views. `keep_pictures` leaves the pictures in,
    which the understanding path looks at. The other options are those of `Coding`.

    Raises:
        ValueError: a shard changed since it was indexed, or the tokenizer cannot read pictures of this size.
    """
    coding = Coding(tokenizer=tokenizer, size=size, views=views, batch_size=batch_size)
    for sample, codes in codes_of_samples(index, numbers, coding):
        left_out = () if keep_pictures else picture_names(sample)
        members = {name: data for name, data in sample.members.items() if name not in left_out}
        yield Sample(sample.key, members | {name: _npy(grids) for name, grids in codes.items()})


def codes_of_samples(
    index: ShardIndex, numbers: Sequence[int], coding: Coding
) -> Iterator[tuple[Sample, Mapping[str, NDArray[Any]]]]:
    """Yield samples with the codes of their pictures by the name of their member.

    Raises:
        ValueError: as `coded_samples` does.
    """
    tokenizer = coding.tokenizer
    kind = np.uint16 if tokenizer.codebook_size <= SMALL else np.uint32
    for part in batched(numbers, coding.batch_size):
        try:
            samples = [index.read(number) for number in part]
        except BadSample as error:
            raise ValueError(f"a shard must stay as it was indexed, but it changed: {error}; start again.") from error
        codes: list[dict[str, NDArray[Any]]] = [{} for _ in samples]
        seen = [(i, name) for i, sample in enumerate(samples) for name in picture_names(sample)]
        for pictures in batched(seen, coding.batch_size):
            views = [_views(samples[i], name, coding) for i, name in pictures]
            grids = iter(_encode(tokenizer, [pixels for each in views for pixels in each]))
            for i, name in pictures:
                made = np.stack([next(grids).cpu().numpy() for _ in range(coding.views)]).astype(kind)
                codes[i][codes_name(name, tokenizer.fingerprint)] = made if coding.views > 1 else made[0]
        yield from zip(samples, codes, strict=True)


def _views(sample: Sample, picture: str, coding: Coding) -> list[Float[Tensor, "3 h w"]]:
    """Return the pixels of every view of a picture; windows are a function of its name and the view's number."""
    fit = coding.tokenizer.config.pictures
    image = decode_picture(picture_bytes(sample, picture))
    height, width = target_size((image.height, image.width), coding.size, fit, coding.tokenizer.config.down_sampling)
    name = zlib.crc32(f"{sample.key} {picture}".encode())
    windows = [image, *(_window(image, name, view) for view in range(1, coding.views))]
    return [to_pixels(window, height, width, fit=fit) for window in windows]


def _window(image: Image.Image, name: int, view: int) -> Image.Image:
    random = np.random.Generator(np.random.Philox(key=[name, view]))
    share = random.uniform(SMALLEST_WINDOW, 1)
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = int(random.integers(image.width - width + 1)), int(random.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _encode(
    tokenizer: ImageTokenizer, pixels: Sequence[Float[Tensor, "3 h w"]]
) -> Sequence[Int[Tensor, "rows columns"]]:
    """Encode pictures, together where they have one shape."""
    device = next(tokenizer.parameters()).device
    if len({tuple(each.shape) for each in pixels}) == 1:
        return list(tokenizer.encode(torch.stack(list(pixels)).to(device)))
    return [tokenizer.encode(each[None].to(device))[0] for each in pixels]


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield the items in pieces of `size` (itertools has this from Python 3.12 on)."""
    yield from (items[start : start + size] for start in range(0, len(items), size))


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
