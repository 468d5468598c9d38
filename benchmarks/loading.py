"""Count the samples a second that one core reads, beside plain webdataset on the same shards.

    python benchmarks/loading.py --readme

Every reader reads the same shards in every round, in turn; seconds are those of the processor, so that other work on
the machine counts little.
"""

import argparse
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from figures import publish, times
from peers import SHAPES
from PIL import Image
from sampling import HERE, measured_on, using_threads

from anymodal.data import jpeg
from anymodal.data.config import DataConfig
from anymodal.data.index import ShardIndex
from anymodal.data.opening import open_shards
from anymodal.data.order import Order, Source
from anymodal.data.pictures import decode_rgb
from anymodal.data.records import CodeRecords, records_path, stage_records
from anymodal.data.samples import Reading, captions_of, codes_name, codes_of, picture_bytes, pixels_of
from anymodal.data.scenes import scene_samples
from anymodal.data.shards import Sample, write_shards
from anymodal.learning.batches import DocumentBatches, PictureBatches
from anymodal.learning.config import Ratios, StageConfig
from anymodal.model.folder import EMBEDDED, ModelFolder

SIDE, GRID, BATCH = 256, 8, 64
NOISE = 12.0  # grey levels, so that a drawn scene has as many bytes as a photograph
WEBDATASET = {"token samples": "webdataset, np.load", "256 px JPEG": "webdataset, Pillow"}
Reader = Callable[[], object]


def pictures(count: int) -> list[Sample]:
    """Draw scenes as noisy JPEGs."""
    noise, samples = np.random.default_rng(0), []
    for scene in scene_samples("train", count=count, seed=0, size=SIDE):
        drawn = np.asarray(Image.open(io.BytesIO(picture_bytes(scene))).convert("RGB"))
        noisy = (drawn + noise.normal(0, NOISE, drawn.shape)).clip(0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noisy).save(stream, "JPEG", quality=90)
        samples.append(Sample(scene.key, {"jpg": stream.getvalue(), "txt": scene.members["txt"]}))
    return samples


def tokens(scenes: Sequence[Sample], count: int, name: str) -> Iterator[Sample]:
    """Yield samples of codes and a caption that no other one has."""
    drawn = np.random.default_rng(0)
    for number in range(count):
        stream = io.BytesIO()
        np.save(stream, drawn.integers(4096, size=(GRID, GRID), dtype=np.uint16))
        caption = scenes[number % len(scenes)].members["txt"] + f" {number}".encode()
        yield Sample(f"{number:06d}", {"txt": caption, name: stream.getvalue()})


def token_readers(folder: Path, scenes: Sequence[Sample], count: int) -> dict[str, Reader]:
    """Write shards of tokens, and records beside shards of captions; return what reads them."""
    parts = ModelFolder.load(EMBEDDED / "emoji")
    reading = Reading(fingerprint=parts.image_tokenizer.fingerprint, look_size=None)
    name = codes_name("", reading.fingerprint)
    coded = list(tokens(scenes, count, name))
    inside = write_shards(coded, f"{folder}/inside/%06d.tar")
    write_shards([Sample(each.key, {"txt": each.members["txt"]}) for each in coded], f"{folder}/beside/%06d.tar")
    raw, index = ShardIndex.open(f"{folder}/beside"), ShardIndex.open(f"{folder}/inside")
    records = []
    for shard, path in enumerate(raw.shards):
        size, crc32 = raw.contents[shard]
        first = sum(raw.shard_sizes[:shard])
        codes = [
            {name: codes_of(coded[first + row], reading).numpy().astype(np.uint16)}
            for row in range(raw.shard_sizes[shard])
        ]
        target = records_path(folder / "records", path, crc32, reading.fingerprint)
        target.parent.mkdir(exist_ok=True)
        about = {"shard_bytes": size, "samples": raw.shard_sizes[shard]}
        stage_records(codes, about, target).commit()
        records.append(CodeRecords(target))
    data = DataConfig(train=f"{folder}/beside", codes=f"{folder}/records")
    joined = open_shards(data, data.train, fingerprint=reading.fingerprint)
    numbers = order_of(index)
    rows = [(records[index.locate(number)[0]], index.locate(number)[1]) for number in numbers]
    stage = StageConfig(ratios=Ratios(draw=1.0, answer=0.0, text=0.0), seq_len=512)
    steps = range(count // BATCH)
    order = {"batch_size": BATCH, "seed": 0, "steps": len(steps)}
    again = DocumentBatches(index, encoder=parts.encoder(), reading=reading, stage=stage, order=order)

    def epoch() -> None:
        tokenizer = parts.text_tokenizer.with_specials(())  # one that has seen no text
        encoder = replace(parts, text_tokenizer=tokenizer).encoder()
        batches = DocumentBatches(index, encoder=encoder, reading=reading, stage=stage, order=order)
        drain(batches[step] for step in steps)

    def read(shards: ShardIndex) -> Reader:
        return lambda: drain((captions_of(s), codes_of(s, reading)) for s in map(shards.read, numbers))

    def webdataset() -> None:
        drain((each["txt"].decode(), np.load(io.BytesIO(each[name]))) for each in walk(inside))

    return {
        WEBDATASET["token samples"]: webdataset,
        "anymodal, caption and codes of a sample": read(index),
        "anymodal, the same with codes in records": read(joined),
        "anymodal, codes from records": lambda: drain(each.of(row) for each, row in rows),
        "anymodal, batches for training": epoch,
        "anymodal, the same, all captions known": lambda: drain(again[step] for step in steps),
    }


def with_bad(samples: Sequence[Sample]) -> Iterator[Sample]:
    """Yield samples, and behind each hundredth one that is cut: 1 % more."""
    for number, sample in enumerate(samples):
        yield sample
        if number % 100 == 0:
            picture = sample.members["jpg"]
            yield Sample(f"{sample.key}-bad", {**sample.members, "jpg": picture[: len(picture) // 2]})


def picture_readers(folder: Path, scenes: Sequence[Sample]) -> dict[str, Reader]:
    """Write shards of pictures; return what reads them."""
    shards = write_shards(scenes, f"{folder}/pictures/%06d.tar")
    index = ShardIndex.open(f"{folder}/pictures")
    numbers, loose = order_of(index), [each.members["jpg"] for each in scenes]
    order = {"batch_size": min(BATCH, len(scenes)), "seed": 0, "steps": max(1, len(scenes) // BATCH)}
    batches = PictureBatches(index, size=SIDE, order=order)

    def pillow(data: bytes) -> object:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def decoded() -> None:
        drain(decode_rgb(picture_bytes(index.read(number))) for number in numbers)

    def pixels() -> None:
        drain(pixels_of(index.read(number), SIDE, "crop") for number in numbers)

    def without(reader: Reader) -> Reader:
        def read() -> None:
            with no_turbo():
                reader()

        return read

    readers: dict[str, Reader] = {
        "Pillow alone, bytes in memory": lambda: drain(pillow(data) for data in loose),
        WEBDATASET["256 px JPEG"]: lambda: drain(pillow(each["jpg"]) for each in walk(shards)),
        "anymodal, decoded by Pillow": without(decoded),
        "anymodal, pixels of it": without(pixels),
    }
    fast = jpeg.turbo()
    if fast is not None:
        readers |= {
            "simplejpeg alone, bytes in memory": lambda: drain(fast.decode_jpeg(data) for data in loose),
            "anymodal, decoded by simplejpeg": decoded,
            "anymodal, pixels of that": pixels,
        }
    return {**readers, "anymodal, batches for training": lambda: drain(batches[step] for step in range(len(batches)))}


def beside_bad(folder: Path, scenes: Sequence[Sample], rounds: int) -> float:
    """Return how many times as long batches take where 1 % more are bad: the median over small ones, made in turn."""
    write_shards(with_bad(scenes), f"{folder}/with-bad/%06d.tar")
    shards = [ShardIndex.open(f"{folder}/{name}", max_bad_fraction=1.0) for name in ("pictures", "with-bad")]
    assert sum(shards[1].bad.values()) and len(shards[0]) == len(shards[1]), "bad samples are set aside, and no others"
    order = {"batch_size": 4, "seed": 0, "steps": len(scenes) // 4}
    made = {
        name: PictureBatches(each, size=SIDE, order=order) for name, each in zip(("good", "bad"), shards, strict=True)
    }
    seconds: dict[str, list[float]] = {"good": [], "bad": []}
    for step in range(order["steps"]):
        readers = {name: partial(batches.__getitem__, step) for name, batches in made.items()}
        for name, taken in measure(readers, rounds).items():
            seconds[name] += taken
    return times(seconds["good"], seconds["bad"])


@contextmanager
def no_turbo() -> Iterator[None]:
    """Decode as a machine without simplejpeg does."""
    found, jpeg.turbo = jpeg.turbo, lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        jpeg.turbo = found  # type: ignore[assignment]


def walk(shards: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Read shards as a program of webdataset does that decodes by itself."""
    from webdataset import WebDataset  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves shards open until they are collected
        yield from WebDataset([str(path) for path in shards], shardshuffle=False, empty_check=False)


def drain(items: Iterable[object]) -> None:
    """Take all items and keep none."""
    for _ in items:
        pass


def order_of(index: ShardIndex) -> list[int]:
    """Return the samples of one epoch in the order of a training."""
    order = Order([Source(name="all", shard_sizes=index.shard_sizes)], batch_size=len(index), seed=0)
    return [slot.sample for slot in order.step(0)]


def measure(readers: Mapping[str, Reader], rounds: int) -> dict[str, list[float]]:
    """Return the processor's seconds of every reader in every round, back and forth, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        for name, reader in list(readers.items())[:: 1 if number % 2 else -1]:
            start = time.process_time()
            reader()
            if number:
                seconds[name].append(time.process_time() - start)
    return seconds


def table(found: Mapping[str, Any]) -> str:
    """Write the figures as Markdown."""
    about = (
        f"{found['machine']['Processor']}; {found['machine']['Software']}, Pillow {found['pillow']}; medians of "
        f"{found['rounds']}; {found['date']}, commit {found['commit']}."
    )
    lines = [about, "", "| samples | reader | samples/s a core | x webdataset |", "| --- | --- | ---: | ---: |"]
    for what, measured in found["samples"].items():
        for name, seconds in measured["seconds"].items():
            rate = statistics.median(measured["count"] / each for each in seconds)
            ratio = times(seconds, measured["seconds"][WEBDATASET[what]])
            lines.append(f"| {what} | {name} | {rate:,.0f} | {ratio:.2f} |")
    longer = found["beside_bad"] - 1
    lines += ["", f"Where 1 % more samples are bad, batches of pictures take {longer:+.1%} of the processor's time."]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4096, help="token samples; an eighth as many pictures")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=HERE / "loading.json")
    parser.add_argument("--readme", type=Path, nargs="?", const=HERE / "README.md", help="splice the table into it")
    parser.add_argument("--quick", action="store_true", help="few samples, one round, to see that it runs")
    options = parser.parse_args(argv)
    if options.quick:
        options.count, options.rounds = 2 * BATCH, 1
    with using_threads(1), tempfile.TemporaryDirectory() as name:
        folder, scenes = Path(name), pictures(options.count // 8)
        measured = {
            "token samples": (options.count, measure(token_readers(folder, scenes, options.count), options.rounds)),
            "256 px JPEG": (len(scenes), measure(picture_readers(folder, scenes), options.rounds)),
        }
        bad = beside_bad(folder, scenes, options.rounds)
        about = measured_on(SHAPES["toy"], 0.0)
    found = {
        **about, "pillow": Image.__version__, "rounds": options.rounds, "beside_bad": bad,
        "samples": {what: {"count": count, "seconds": seconds} for what, (count, seconds) in measured.items()},
    }  # fmt: skip
    publish(found, table(found), options.out, options.readme, "loading")


if __name__ == "__main__":
    main()
