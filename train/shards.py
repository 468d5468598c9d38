"""Pack pictures and captions, a table, or the embedded emoji set into shards.

    anymodal train shards --emoji all --concepts 70 --scenes 2000 --out data/emoji
    anymodal train shards --pictures my-pictures --out data/mine
    anymodal train shards --table captions.csv --out data/mine --size 256

A folder holds pictures (jpg, png, webp) and captions of the same name (.txt). A table (.csv, .tsv, .jsonl) has the
columns image and caption; a line of JSON may have chat turns instead: {"turns": [{"role": "user", "parts": [{"look":
"a.png"}, {"text": "What is this?"}]}, {"role": "assistant", "parts": [{"text": "an apple"}]}]}. Paths start at the
table's folder.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anymodal.data.importing import Sieve
    from anymodal.data.shards import Sample

Split = Literal["train", "held-out"]


def main(
    *,
    out: Path,
    emoji: Literal["all", "single", "scenes"] | None = None,
    pictures: Path | None = None,
    table: Path | None = None,
    split: Split = "train",
    concepts: int | None = None,
    scenes: int = 1000,
    kinds: list[str] | None = None,
    seed: int = 0,
    picture_column: str = "image",
    caption_column: str = "caption",
    size: int | None = None,
    samples_per_shard: int = 1000,
    max_bad_fraction: float = 0.001,
    overwrite: bool = False,
) -> None:
    """Pack samples into shards, each with its index, all of them or none.

    Args:
        out: folder of the shards; they are named 000000.tar, 000001.tar, ...
        emoji: pack the embedded emoji: single ones, scenes of them, or all of both.
        pictures: pack this folder of pictures and .txt captions.
        table: pack the rows of this .csv, .tsv or .jsonl file.
        split: half of the embedded set; held-out emoji and combinations are never in "train".
        concepts: take only the first so many of the emoji that scenes are made of.
        scenes: number of scenes.
        kinds: kinds of scenes (one, two, counting, colours, position, binding); one named twice comes twice as often.
        seed: seed of the scenes.
        picture_column: column of a table that holds paths; '' where it has none.
        caption_column: column of a table that holds captions; '' where it has none.
        size: shrink pictures to this shorter side in pixels; without it their bytes are copied. Emoji are drawn at it.
        samples_per_shard: samples in a shard.
        max_bad_fraction: share of bad samples above which nothing is written.
        overwrite: replace the shards that stand in the folder.
    """
    from anymodal.data.importing import Sieve, folder_samples, table_samples
    from anymodal.data.progress import track
    from anymodal.data.shards import write_shards

    given = [f"--{name}" for name, value in (("emoji", emoji), ("pictures", pictures), ("table", table)) if value]
    if len(given) != 1:
        came = " and ".join(given) or "none"
        raise ValueError(f"shards are packed from one of --emoji, --pictures, --table, got {came}")
    if pictures:
        samples = folder_samples(pictures)
    elif table:
        samples = table_samples(table, picture_column=picture_column, caption_column=caption_column)
    else:
        samples = embedded(emoji, split, concepts, scenes, kinds, seed, size or 64)
    sieve = Sieve(max_bad_fraction=max_bad_fraction, size=None if emoji else size)
    shards = write_shards(
        sieve(track(samples, "packing")),
        str(out / "%06d.tar"),
        samples_per_shard=samples_per_shard,
        overwrite=overwrite,
        pictures_verified=True,
    )
    sys.stdout.write(f"shards   {len(shards)} in {out}\n{report(sieve)}")


def report(sieve: "Sieve") -> str:
    """Tell how many samples are good, what they hold, and why others are bad."""
    held = ", ".join(f"{count} with {part}" for part, count in sorted(sieve.holds.items()))
    reasons = "".join(
        f"  {count} x {reason}, first {sieve.first_of[reason]}\n" for reason, count in sorted(sieve.bad.items())
    )
    return f"samples  {sieve.good} ({held})\nbad      {sieve.bad.total()}\n{reasons}"


def embedded(
    kind: str | None, split: Split, concepts: int | None, scenes: int, kinds: list[str] | None, seed: int, size: int
) -> "Iterator[Sample]":
    """Yield samples of the embedded emoji set: single ones, then scenes."""
    from anymodal.data.emoji import emoji_samples
    from anymodal.data.scenes import SCENE_NAMES, scene_samples

    if concepts is not None and not 0 < concepts <= len(SCENE_NAMES):
        raise ValueError(f"concepts must be from 1 to {len(SCENE_NAMES)}, got {concepts}; without it all are packed")
    if kind != "scenes":
        yield from emoji_samples(split, concepts=SCENE_NAMES[:concepts] if concepts else None, size=size)
    if kind != "single":
        yield from scene_samples(split, count=scenes, seed=seed, concepts=concepts, kinds=kinds, size=size)
