r"""Encode the pictures of shards, so that training encodes nothing.

    anymodal tokenizers codes --shards "data/train-{000000..000003}.tar" \
        --image_tokenizer runs/tokenizer/image_tokenizer --out data/coded
    torchrun --nproc_per_node 8 -m anymodal tokenizers codes --shards data/train --form records \
        --image_tokenizer runs/tokenizer/image_tokenizer --out data/codes

The shards are written again, one for each, with the codes among the members; or, as records, the codes alone, in a file
a shard, which `--data.codes data/codes` reads beside the shards as they are. All codes carry the image tokenizer's
fingerprint; training refuses codes of another one. Many processes share the shards: those of torchrun and of SLURM know
their rank, others are told. Each shard is whole or absent, and the same command goes on where a killed one was.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from anymodal.data.config import DataConfig

if TYPE_CHECKING:
    from anymodal.data.recoding import Recoding


def main(
    *,
    shards: str,
    image_tokenizer: Path,
    out: Path,
    form: Literal["members", "records"] = "members",
    size: int = 64,
    augmentations: int = 1,
    batch_size: int = 64,
    keep_pictures: bool = True,
    rank: int | None = None,
    world: int | None = None,
    index_folder: str | None = None,
    cache_folder: str = "",
    cache_shards: int = 16,
    max_bad_fraction: float = 0.001,
    overwrite: bool = False,
    allow_pickle: bool = False,
) -> None:
    """Encode the pictures of shards.

    Args:
        shards: shards to read, as open_clip writes them ("train-{000..010}.tar"), or addresses of remote ones.
        image_tokenizer: folder of the image tokenizer, or of a model of any known layout, or the name of an embedded
            model, whose own is taken.
        out: folder of the new shards, which are named 000000.tar, 000001.tar, ..., or of the records.
        form: write every shard again with codes among its members, or records of codes alone.
        size: side in pixels that pictures are cropped to.
        augmentations: views encoded: the picture, and windows of it at random places; drawing learns from any.
        batch_size: pictures encoded at once.
        keep_pictures: keep the pictures beside their codes, for models with an understanding path.
        rank: which of the processes this is, from 0 on; null asks torchrun or SLURM, or is the only one.
        world: how many processes share the shards.
        index_folder: where indexes of foreign shards go when their own folder is read-only.
        cache_folder: where copies of remote shards are kept, and their indexes; a training may share them.
        cache_shards: half the number of copies that are kept.
        max_bad_fraction: share of bad samples above which nothing is written, among the shards of this process.
        overwrite: replace what stands in the folder and was made of something else.
        allow_pickle: also read weights that are stored as pickles; only for folders whose makers you trust.
    """
    from anymodal.data.coding import Coding
    from anymodal.data.recoding import Recoding
    from anymodal.published.registry import load_image_tokenizer

    share = place_of(rank, world)
    tokenizer = load_image_tokenizer(image_tokenizer, allow_pickle=allow_pickle)
    coding = Coding(tokenizer=tokenizer, size=size, views=augmentations, batch_size=batch_size)
    recoding = Recoding(coding=coding, out=out, form=form, keep_pictures=keep_pictures, overwrite=overwrite)
    data = DataConfig(
        train=shards, index_folder=index_folder, cache_folder=cache_folder, cache_shards=cache_shards,
        max_bad_fraction=max_bad_fraction,
    )  # fmt: skip
    encode(data, share, recoding)


def encode(data: DataConfig, share: tuple[int, int], recoding: "Recoding") -> None:
    """Write the codes of a process's share of the shards, and say what became of them."""
    import torch

    from anymodal.data.opening import open_shards
    from anymodal.data.progress import track
    from anymodal.data.recoding import check_folder, recode
    from anymodal.data.shards import expand

    (place, processes), count = share, len(expand(data.train))
    if recoding.form == "members":
        check_folder(recoding.out, count, overwrite=recoding.overwrite)
    numbers = range(place, count, processes)
    if not numbers:
        return print(f"{recoding.out}: no shard is left for process {place} of {processes}, there are {count}")
    index = open_shards(data, data.train, progress=lambda items: track(items, "indexing"), share=share)
    if torch.cuda.is_available():
        recoding.coding.tokenizer.to(f"cuda:{place % torch.cuda.device_count()}")
    made = recode(index, numbers, recoding, progress=lambda items: track(items, "encoding"))
    kept = f", {made.kept} of them stood there already" if made.kept else ""
    what = {"members": "shards with codes", "records": "records of codes"}[recoding.form]
    fingerprint = recoding.coding.tokenizer.fingerprint
    print(f"{recoding.out}: {made.samples} samples in {len(numbers)} {what} of {fingerprint}{kept}")
    for reason, number in index.bad.items():
        print(f"set aside: {number} x {reason}")


def place_of(rank: int | None, world: int | None) -> tuple[int, int]:
    """Return rank and number of processes: as told, or as torchrun or SLURM say."""
    import os

    if rank is None and world is None:
        for names in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
            if all(name in os.environ for name in names):
                rank, world = (int(os.environ[name]) for name in names)
                break
        else:
            rank, world = 0, 1
    if rank is None or world is None or not 0 <= rank < world:
        raise ValueError(f"rank must be in [0, world), and both be given or none, got rank {rank} of world {world}")
    return rank, world
