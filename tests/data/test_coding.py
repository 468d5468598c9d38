import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anymodal.data.coding import batched, coded_samples
from anymodal.data.index import ShardIndex
from anymodal.data.samples import Reading, codes_of
from anymodal.data.shards import Sample, write_shards

COLOURS = ["red", "lime", "blue"]


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 8), colour).save(stream, "PNG")
    return stream.getvalue()


def encode(pixels: Tensor) -> Tensor:
    """Code which channel is brightest, for every quarter."""
    return pixels[:, :, ::4, ::4].argmax(1)


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    samples = [Sample(f"{i}", {"png": png(colour), "txt": colour.encode()}) for i, colour in enumerate(COLOURS)]
    samples.append(Sample("3", {"txt": b"no picture"}))
    samples.append(Sample("4", {"png": png("blue"), "1.png": png("lime"), "txt": b"two"}))
    write_shards(samples, f"{tmp_path}/%06d.tar")
    return ShardIndex.open(str(tmp_path))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_every_picture_gets_its_codes(index: ShardIndex, batch_size: int) -> None:
    made = list(
        coded_samples(
            index, range(5), encode=encode, fingerprint="f00d", codebook_size=3, size=8, batch_size=batch_size
        )
    )
    reading = Reading(fingerprint="f00d", look_size=None)
    assert [sample.key for sample in made] == ["0", "1", "2", "3", "4"]
    assert [codes_of(made[i], reading).tolist() for i in range(3)] == [[[i] * 2] * 2 for i in range(3)]
    assert made[3].members == {"txt": b"no picture"}
    assert codes_of(made[4], reading).unique().tolist() == [2]
    assert codes_of(made[4], reading, "1.png").unique().tolist() == [1]
    assert made[0].members["png"] == png("red")


@pytest.mark.parametrize(("codebook_size", "kind"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_codes_alone_are_small(index: ShardIndex, codebook_size: int, kind: type) -> None:
    options = {"encode": encode, "fingerprint": "f00d", "size": 8}
    made = list(coded_samples(index, [0, 4], codebook_size=codebook_size, keep_pictures=False, **options))  # type: ignore[arg-type]
    assert set(made[1].members) == {"txt", "codes.f00d.npy", "1.codes.f00d.npy"}
    assert np.load(io.BytesIO(made[0].members["codes.f00d.npy"])).dtype == kind


def test_a_shard_that_changed_is_named(index: ShardIndex) -> None:
    shard = Path(index.shards[0])
    data = bytearray(shard.read_bytes())
    place = data.index(b"IDAT")
    data[place + 6] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="must stay as it was indexed, but it changed: crc32 differs"):
        list(coded_samples(index, [0], encode=encode, fingerprint="f00d", codebook_size=3, size=8))


def test_pieces_hold_everything_once() -> None:
    assert list(batched([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert torch.equal(encode(torch.zeros(1, 3, 8, 8)), torch.zeros(1, 2, 2, dtype=torch.long))
