import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from anymodal.data.coding import batched, coded_samples
from anymodal.data.index import ShardIndex
from anymodal.data.samples import Reading, codes_of
from anymodal.data.shards import Sample, write_shards
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig
from anymodal.tokens.picture_config import PictureFit

COLOURS = ["red", "lime", "blue"]


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 8), colour).save(stream, "PNG")
    return stream.getvalue()


class Brightest(ImageTokenizer):
    """Code which channel is brightest, for every quarter."""

    fingerprint = "f00d"

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels[:, :, ::4, ::4].argmax(1)


def brightest(codebook_size: int = 4, **fit: Any) -> ImageTokenizer:
    quantizer = QuantizerConfig(kind="vq", codebook_size=codebook_size, codebook_dim=2)
    config = ImageTokenizerConfig(channels=(8,), blocks=1, latent_channels=4, quantizer=quantizer)
    return Brightest(replace(config, pictures=PictureFit(**fit)) if fit else config)


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    samples = [Sample(f"{i}", {"png": png(colour), "txt": colour.encode()}) for i, colour in enumerate(COLOURS)]
    samples.append(Sample("3", {"txt": b"no picture"}))
    samples.append(Sample("4", {"png": png("blue"), "1.png": png("lime"), "txt": b"two"}))
    write_shards(samples, f"{tmp_path}/%06d.tar")
    return ShardIndex.open(str(tmp_path))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_every_picture_gets_its_codes(index: ShardIndex, batch_size: int) -> None:
    made = list(coded_samples(index, range(5), tokenizer=brightest(), size=8, batch_size=batch_size))
    reading = Reading(fingerprint="f00d", look_size=None)
    assert [sample.key for sample in made] == ["0", "1", "2", "3", "4"]
    assert [codes_of(made[i], reading).tolist() for i in range(3)] == [[[i] * 2] * 2 for i in range(3)]
    assert made[3].members == {"txt": b"no picture"}
    assert codes_of(made[4], reading).unique().tolist() == [2]
    assert codes_of(made[4], reading, "1.png").unique().tolist() == [1]
    assert made[0].members["png"] == png("red")


@pytest.mark.parametrize(("codebook_size", "kind"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_codes_alone_are_small(index: ShardIndex, codebook_size: int, kind: type) -> None:
    made = list(coded_samples(index, [0, 4], tokenizer=brightest(codebook_size), size=8, keep_pictures=False))
    assert set(made[1].members) == {"txt", "codes.f00d.npy", "1.codes.f00d.npy"}
    assert np.load(io.BytesIO(made[0].members["codes.f00d.npy"])).dtype == kind


def test_a_shard_that_changed_is_named(index: ShardIndex) -> None:
    shard = Path(index.shards[0])
    data = bytearray(shard.read_bytes())
    place = data.index(b"IDAT")
    data[place + 6] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="must stay as it was indexed, but it changed: crc32 differs"):
        list(coded_samples(index, [0], tokenizer=brightest(), size=8))


def test_pieces_hold_everything_once() -> None:
    assert list(batched([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]


def test_pictures_may_keep_their_shape(index: ShardIndex, tmp_path: Path) -> None:
    area = brightest(kind="area", min_pixels=64, max_pixels=256)
    (made,) = coded_samples(index, [0], tokenizer=area, size=8)
    assert codes_of(made, Reading(fingerprint="f00d", look_size=None)).shape == (2, 3)  # of 8 x 12 pixels
