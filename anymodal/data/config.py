"""Configuration of where samples come from; free of torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Shards and how they are read.

    Args:
        train: shard patterns, as open_clip writes them ("train-{000..010}.tar"), or addresses of remote ones
            ("s3://bucket/train-{000..010}.tar") that fsspec can read.
        held_out: shards of the validation losses; empty for none.
        codes: folder of records with the codes of these shards (`anymodal tokenizers codes --form records`);
            empty where the shards hold their codes themselves.
        index_folder: where indexes of foreign shards go when their own folder is read-only.
        cache_folder: where copies of remote shards are kept, a few blocks of cache_shards, and their indexes.
        max_bad_fraction: share of bad samples above which a run stops.
        cache_shards: shards whose samples are shuffled together.
        num_workers: processes that prepare batches; 0 prepares them in the training process.
        worker_timeout_s: seconds after which a batch that has not come ends the run, as its process hangs; 0 for never.
    """

    train: str
    held_out: str = ""
    codes: str = ""
    index_folder: str | None = None
    cache_folder: str = ""
    max_bad_fraction: float = 0.001
    cache_shards: int = 16
    num_workers: int = 1
    worker_timeout_s: float = 600.0
