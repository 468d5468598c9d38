"""One sample in a hundred is odd or bad: the odd ones give the pixels that a viewer shows, the bad ones are counted."""

import io
import json
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from anymodal.__main__ import main
from anymodal.data.index import ShardIndex
from anymodal.data.samples import pixels_of
from anymodal.data.shards import Sample, write_shards
from anymodal.learning.batches import PictureBatches

RED, WHITE, GREY = (255, 0, 0), (255, 255, 255), (128, 128, 128)
SIDE = 8


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def plain(colour: Any = RED, mode: str = "RGB", side: int = SIDE) -> Image.Image:
    return Image.new(mode, (side, side), colour)


def png(side: int, depth: int, colour: int, rows: bytes) -> bytes:
    """Write a PNG by hand, of more bits or more pixels than Pillow writes."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bomb(side: int) -> bytes:
    packer, row = zlib.compressobj(9), bytes(side + 1)
    return png(side, 8, 0, b"".join(packer.compress(row) for _ in range(side)) + packer.flush())


def turned(orientation: int) -> bytes:
    """Store a picture, red above white, such that EXIF turns it upright."""
    image = plain(WHITE)
    image.paste(RED, (0, 0, SIDE, SIDE // 2))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)  # of Pillow's transpositions, the inverse
    stored = image if back is None else image.transpose(Image.Transpose(back))
    exif = stored.getexif()
    exif[0x0112] = orientation
    return encode(stored, exif=exif)


GREY16 = png(SIDE, 16, 0, zlib.compress((b"\0" + struct.pack(">H", 32896) * SIDE) * SIDE))
FRAMES: dict[str, Any] = {"save_all": True, "append_images": [plain("blue")]}
ODD: dict[str, tuple[str, bytes, tuple[int, int, int]]] = {
    "1x1": ("png", encode(plain(side=1)), RED),
    "CMYK": ("jpg", encode(plain((0, 255, 255, 0), "CMYK"), "JPEG", quality=100), RED),
    "16 bits": ("png", GREY16, GREY),
    "LA": ("png", encode(plain((0, 0), "LA")), WHITE),
    "RGBA": ("png", encode(plain((255, 0, 0, 0), "RGBA")), WHITE),
    "animated PNG": ("png", encode(plain(), **FRAMES), RED),
    "animated WebP": ("webp", encode(plain(), "WEBP", lossless=True, **FRAMES), RED),
    **{f"EXIF {orientation}": ("png", turned(orientation), RED) for orientation in range(1, 9)},
}
WHOLE = encode(Image.effect_noise((64, 64), 90).convert("RGB"))
BAD: dict[str, tuple[dict[str, bytes], str]] = {
    "truncated": ({"png": WHOLE[:5000], "txt": b"x"}, "picture truncated"),
    "empty": ({"png": b"", "txt": b"x"}, "picture empty"),
    "30,000 squared": ({"png": bomb(30_000), "txt": b"x"}, "picture too large"),
    "no picture": ({"png": b"<html>404</html>", "txt": b"x"}, "picture unknown format"),
    "empty caption": ({"png": encode(plain()), "txt": b" "}, "caption empty"),
    "caption in Latin-1": ({"png": encode(plain()), "txt": "ein Äpfel".encode("latin-1")}, "caption not UTF-8"),
    "no caption": ({"png": encode(plain())}, "no caption"),
    "no half": ({"txt": b"x"}, "no picture"),
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, long: bool) -> tuple[Path, int]:
    """Write shards of which one sample in a hundred is bad, and twice as many odd; return how many there are."""
    folder, repeats = tmp_path_factory.mktemp("mixed"), 10 if long else 1
    count = 100 * len(BAD) * repeats
    good = encode(plain("blue"))
    samples = [Sample(f"{i:06d}", {"png": good, "txt": b"a blue square"}) for i in range(count)]
    for repeat in range(repeats):
        strange = [*((name, members) for name, (members, _) in BAD.items())]
        strange += [(name, {kind: data, "txt": name.encode()}) for name, (kind, data, _) in ODD.items()]
        for place, (name, members) in enumerate(strange):
            key = f"{re.sub('[^a-zA-Z0-9]', '-', name)}-{repeat}"
            samples[(repeat * len(strange) + place) * 31 + 7] = Sample(key, members)
    write_shards(samples, f"{folder}/%03d.tar", samples_per_shard=200)
    return folder, count


def test_odd_pictures_are_right_and_bad_samples_are_counted(mixed: tuple[Path, int], tally: Any) -> None:
    folder, count = mixed
    index = ShardIndex.open(str(folder), max_bad_fraction=0.02, needs=("picture", "caption"))
    repeats = count // (100 * len(BAD))
    tally.made = repeats * (len(BAD) + len(ODD))
    assert index.bad == {reason: repeats for _, reason in sorted(BAD.values(), key=lambda bad: bad[1])}
    assert len(index) + sum(index.bad.values()) == count
    golden = {name.replace(" ", "-"): colour for name, (_, _, colour) in ODD.items()}
    found = set()
    for number in range(len(index)):
        name = index.key(number).rpartition("-")[0]
        if name:
            pixels = pixels_of(index.read(number), SIDE, "crop")
            assert ((pixels[:, 1, 4] + 1) * 127.5).round().int().tolist() == list(golden[name]), name
            if name.startswith("EXIF"):
                assert ((pixels[:, -1, 4] + 1) * 127.5).round().int().tolist() == list(WHITE), name
            found.add(name)
    assert found == set(golden)
    tally.survived = tally.made


def test_an_epoch_sees_all_that_is_in_the_index(mixed: tuple[Path, int]) -> None:
    index = ShardIndex.open(str(mixed[0]), max_bad_fraction=0.02, needs=("picture", "caption"))
    steps = -(-len(index) // 64)
    batches = PictureBatches(index, size=SIDE, order={"batch_size": 64, "seed": 0, "steps": steps})
    shown = sum(len(batches[step]) for step in range(steps))
    assert shown + batches.skipped.total() == 64 * steps
    assert not batches.skipped, "what is bad was set aside when the shards were indexed"
    blue = torch.tensor([0, 0, 255])
    assert bool((batches[0][:, :, 0, 0] == blue).all(1).any())


@pytest.mark.usefixtures("tally")
@pytest.mark.parametrize("program", ["pretrain", "image"])
def test_a_run_stops_above_the_limit(
    mixed: tuple[Path, int], toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str
) -> None:
    folder, count = mixed
    words = ["--data.train", str(folder), "--out", str(tmp_path / "run")]
    tokenizers = ["--text_tokenizer", str(toy.text_tokenizer), "--image_tokenizer", str(toy.image_tokenizer)]
    wanted = {"pretrain": ["train", "pretrain", *tokenizers], "image": ["tokenizers", "image"]}[program]
    assert main([*wanted, *words]) == 2
    said = capsys.readouterr().err
    bad = sum(reason not in {"no picture", "no caption"} for _, reason in BAD.values())
    if program == "pretrain":
        assert f"at most 0.10% of the samples may be bad, got {count // 100 * bad // len(BAD)} of {count}" in said
    assert re.search(r"1?0? x caption empty", said)
    first = json.dumps(str(folder / "000.tar"))[1:-1]
    assert re.search(rf"the first is truncated-0\.png of {re.escape(first)} at byte \d+: ", said), said
    assert "repair the shards or raise max_bad_fraction" in said
    assert not (tmp_path / "run").exists()


def test_what_goes_bad_later_is_skipped_and_counted(
    programs: Any, numbered: str, tmp_path: Path, toy: Any, tally: Any
) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(numbered, folder)
    index = ShardIndex.open(str(folder))
    hit = [3, 17]
    tally.made = len(hit)
    for number in hit:
        shard, row = index.locate(number)
        place = index._table(shard)[0].places(row)[0]
        with Path(index.shards[shard]).open("r+b") as file:
            file.seek(place.offset)
            byte = file.read(1)[0]
            file.seek(place.offset)
            file.write(bytes([byte ^ 4]))
    steps = 12  # an epoch of text, two of drawing and of answering
    words = ("--data.train", str(folder), "--run.validate_every", "0", "--run.steps", str(steps))
    for workers in ("0", "2"):
        out = tmp_path / workers
        ended = programs(out, *words, "--data.num_workers", workers, diary=True)
        assert ended.code == 0, ended.log
        seen = sum(len(json.loads(line)["documents"]) for line in (out / "diary.jsonl").read_text().splitlines())
        assert f"skipped {len(hit) * 5} samples: crc32 differs" in ended.log
        assert seen + len(hit) * 5 == 10 * steps
    assert (tmp_path / "0" / "diary.jsonl").read_text() == (tmp_path / "2" / "diary.jsonl").read_text()
    tally.survived = tally.made
