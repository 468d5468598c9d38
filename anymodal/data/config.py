"""Configuration of where samples come from; free of torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Shards and how they are read.

    Args:
        train: shard patterns, as open_clip writes them ("train-{000..010}.tar"), or addresses of remote ones
            ("s3://bucket/train-{000..010}.tar") that fsspec can read.
        ratios: shares of the patterns in train ("a::b" holds two) in every step; empty for by how much they hold.
        held_out: shards of the validation losses; null for none.
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
    ratios: tuple[float, ...] = ()
    held_out: str | None = None
    codes: str = ""
    index_folder: str | None = None
    cache_folder: str = ""
    max_bad_fraction: float = 0.001
    cache_shards: int = 16
    num_workers: int = 1
    worker_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        """Check that every pattern of train has its ratio."""
        object.__setattr__(self, "ratios", tuple(self.ratios))
        patterns = [pattern for pattern in self.train.split("::") if pattern]
        if self.ratios and len(self.ratios) != len(patterns):
            raise ValueError(
                f"ratios must be as many as the patterns of train, got {len(self.ratios)} for {len(patterns)}; "
                'part the patterns with "::".'
            )
        if not all(0 < ratio < float("inf") for ratio in self.ratios):
            raise ValueError(f"ratios must be numbers above 0, got {list(self.ratios)}; leave out what is not wanted.")
