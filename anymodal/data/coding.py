"""Shards to shards of codes: pictures pass the image tokenizer once, not in every epoch."""

import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anymodal.data.index import ShardIndex
from anymodal.data.samples import CODES, PICTURES, pixels_of
from anymodal.data.shards import Sample

SMALL = 2**16


def coded_samples(
    index: ShardIndex,
    numbers: Sequence[int],
    *,
    encode: Callable[[Float[Tensor, "b 3 h w"]], Int[Tensor, "b rows columns"]],
    fingerprint: str,
    codebook_size: int,
    size: int,
    batch_size: int = 64,
    keep_pictures: bool = True,
) -> Iterator[Sample]:
    """Yield the samples of an index with a member `codes.FINGERPRINT.npy`; samples without a picture pass unchanged.

    `keep_pictures` leaves the pictures in, which the understanding path looks at.
    """
    kind = np.uint16 if codebook_size <= SMALL else np.uint32
    for start in range(0, len(numbers), batch_size):
        samples = [index.read(number) for number in numbers[start : start + batch_size]]
        seen = [i for i, sample in enumerate(samples) if any(extension in sample.members for extension in PICTURES)]
        grids: dict[int, Tensor] = {}
        if seen:
            pixels = torch.stack([pixels_of(samples[i], size, "crop") for i in seen])
            grids = dict(zip(seen, encode(pixels), strict=True))
        for i, sample in enumerate(samples):
            members = {name: data for name, data in sample.members.items() if keep_pictures or name not in PICTURES}
            if i in grids:
                members[f"{CODES}{fingerprint}.npy"] = _npy(grids[i].cpu().numpy().astype(kind))
            yield Sample(sample.key, members)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
