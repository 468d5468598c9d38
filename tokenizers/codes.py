r"""Write shards again with the codes of their pictures, so that training encodes nothing.

    anymodal tokenizers codes --shards "data/train-{000000..000003}.tar" \
        --image_tokenizer runs/tokenizer/image_tokenizer --out data/coded

Every member of codes carries the image tokenizer's fingerprint; training refuses codes of another tokenizer.
"""

from pathlib import Path


def main(
    *,
    shards: str,
    image_tokenizer: Path,
    out: Path,
    size: int = 64,
    batch_size: int = 64,
    keep_pictures: bool = True,
    index_folder: Path | None = None,
    max_bad_fraction: float = 0.001,
    samples_per_shard: int = 1000,
    overwrite: bool = False,
    allow_pickle: bool = False,
) -> None:
    """Encode the pictures of shards.

    Args:
        shards: shards to read, as open_clip writes them ("train-{000..010}.tar").
        image_tokenizer: folder of the image tokenizer, or of a model of any known layout, whose own is taken.
        out: folder of the new shards; they are named 000000.tar, 000001.tar, ...
        size: side in pixels that pictures are cropped to.
        batch_size: pictures encoded at once.
        keep_pictures: keep the pictures beside their codes, for models with an understanding path.
        index_folder: where indexes of foreign shards go when their own folder is read-only.
        max_bad_fraction: share of bad samples above which nothing is written.
        samples_per_shard: samples in a shard.
        overwrite: replace the shards that stand in the folder.
        allow_pickle: also read weights that are stored as pickles; only for folders whose makers you trust.
    """
    from functools import partial

    from anymodal.data.coding import coded_samples
    from anymodal.data.index import ShardIndex
    from anymodal.data.progress import track
    from anymodal.data.shards import write_shards
    from anymodal.published.registry import load_image_tokenizer

    tokenizer = load_image_tokenizer(image_tokenizer, allow_pickle=allow_pickle)
    index = ShardIndex.open(
        shards, index_folder=index_folder, max_bad_fraction=max_bad_fraction, progress=partial(track, what="indexing")
    )
    samples = coded_samples(
        index,
        range(len(index)),
        tokenizer=tokenizer,
        size=size,
        batch_size=batch_size,
        keep_pictures=keep_pictures,
    )
    written = write_shards(
        track(samples, "encoding"), str(out / "%06d.tar"), samples_per_shard=samples_per_shard, overwrite=overwrite,
        pictures_verified=True,
    )  # fmt: skip
    print(f"{out}: {len(index)} samples in {len(written)} shards with codes of {tokenizer.fingerprint}")
    for reason, count in index.bad.items():
        print(f"set aside: {count} x {reason}")
