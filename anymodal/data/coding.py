"""Shards to shards of codes: pictures pass the image tokenizer once, not in every epoch."""

import io
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anymodal.data.index import BadSample, ShardIndex
from anymodal.data.samples import codes_name, picture_names, pixels_of
from anymodal.data.shards import Sample
from anymodal.tokens.image import ImageTokenizer

SMALL = 2**16

Item = TypeVar("Item")


def coded_samples(
    index: ShardIndex,
    numbers: Sequence[int],
    *,
    tokenizer: ImageTokenizer,
    size: int,
    batch_size: int = 64,
    keep_pictures: bool = True,
) -> Iterator[Sample]:
    """Yield the samples of an index with a member `codes.FINGERPRINT.npy`; samples without a picture pass unchanged.

    Codes of a picture beside the main one, such as `1.jpg`, are named after it: `1.codes.FINGERPRINT.npy`.
    `keep_pictures` leaves the pictures in, which the understanding path looks at. `size` is the side in pixels to which
    the tokenizer's own fit brings pictures, save for kind "area", which keeps their shape.

    Raises:
        ValueError: a shard changed since it was indexed, or the tokenizer cannot read pictures of this size.
    """
    fit, factor, fingerprint = tokenizer.config.pictures, tokenizer.config.down_sampling, tokenizer.fingerprint
    kind = np.uint16 if tokenizer.codebook_size <= SMALL else np.uint32
    for start in range(0, len(numbers), batch_size):
        try:
            samples = [index.read(number) for number in numbers[start : start + batch_size]]
        except BadSample as error:
            raise ValueError(f"a shard must stay as it was indexed, but it changed: {error}; start again.") from error
        members = [dict(sample.members) for sample in samples]
        seen = [(i, name) for i, sample in enumerate(samples) for name in picture_names(sample)]
        for pictures in batched(seen, batch_size):
            pixels = [pixels_of(samples[i], size, fit, name, factor=factor) for i, name in pictures]
            grids = _encode(tokenizer, pixels)
            for (i, name), grid in zip(pictures, grids, strict=True):
                members[i][codes_name(name, fingerprint)] = _npy(grid.cpu().numpy().astype(kind))
        for i, name in [] if keep_pictures else seen:
            del members[i][name]
        yield from (Sample(sample.key, held) for sample, held in zip(samples, members, strict=True))


def _encode(
    tokenizer: ImageTokenizer, pixels: Sequence[Float[Tensor, "3 h w"]]
) -> Sequence[Int[Tensor, "rows columns"]]:
    """Encode pictures, together where they have one shape."""
    if len({tuple(each.shape) for each in pixels}) == 1:
        return list(tokenizer.encode(torch.stack(list(pixels))))
    return [tokenizer.encode(each[None])[0] for each in pixels]


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield the items in pieces of `size` (itertools has this from Python 3.12 on)."""
    yield from (items[start : start + size] for start in range(0, len(items), size))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
