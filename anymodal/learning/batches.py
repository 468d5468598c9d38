"""Batches by step number: step k is a pure function of (seed, k, rank, plan)."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from anymodal.data.index import BadSample, ShardIndex
from anymodal.data.order import Order, Slot, Source
from anymodal.data.packing import pack
from anymodal.data.samples import CODES, Reading, UnfitSample, document_of, pixels_of
from anymodal.learning.config import Ratios
from anymodal.tokens.batch import Batch
from anymodal.tokens.document import DocumentEncoder, TokenSequence


class Skipped(Counter[str]):
    """Counts, by reason, of samples that were skipped; every one left its slot empty."""


class DocumentBatches(Dataset[Batch]):
    """The packed batch of every step, made of the tasks of a stage.

    All tasks read the same shards, each in an order of its own. A sample that turns out bad leaves its slot empty.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        encoder: DocumentEncoder,
        reading: Reading,
        ratios: Ratios,
        seq_len: int,
        order: Mapping[str, int],
        rank: tuple[int, int] = (0, 1),
    ) -> None:
        """Prepare the order; `order` holds seed, batch_size, steps and cache_shards."""
        self.index, self.encoder, self.reading, self.seq_len = index, encoder, reading, seq_len
        shares = {"draw": ratios.draw, "answer": ratios.answer, "text": ratios.text, "chat": ratios.chat}
        self.tasks = [task for task, share in shares.items() if share > 0]
        sources = [Source(name=task, shard_sizes=index.shard_sizes, ratio=shares[task]) for task in self.tasks]
        self.order = Order(
            sources, batch_size=order["batch_size"], seed=order["seed"], cache_shards=order.get("cache_shards", 16)
        )
        self.seed, self.steps, self.rank = order["seed"], order["steps"], rank
        self.skipped = Skipped()

    def __len__(self) -> int:
        """Return the number of steps."""
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step."""
        sequences = [sequence for slot in self.slots(step) if (sequence := self._sequence(slot)) is not None]
        if not sequences:
            raise ValueError(f"no sample of step {step} could be read ({dict(self.skipped)}); check the shards.")
        return pack(
            sequences,
            seq_len=self.seq_len,
            pad_id=self.encoder.vocabulary.special("pad"),
            look_tokens=self.encoder.look_tokens,
        )

    def slots(self, step: int) -> list[Slot]:
        """Return what this rank reads at a step."""
        return self.order.step(step, rank=self.rank[0], world=self.rank[1])

    def _sequence(self, slot: Slot) -> TokenSequence | None:
        random = np.random.Generator(np.random.Philox(key=[self.seed, slot.source], counter=[slot.epoch, slot.sample, 0, 0]))
        try:
            sample = self.index.read(slot.sample)
            document = document_of(sample, self.tasks[slot.source], self.reading, random)
        except (BadSample, UnfitSample) as error:
            self.skipped[error.reason] += 1
            return None
        return self.encoder.encode(document)


class PictureBatches(Dataset[Float[Tensor, "b 3 h w"]]):
    """The pictures of every step, for image tokenizers."""

    def __init__(self, index: ShardIndex, *, size: int, order: Mapping[str, int], rank: tuple[int, int] = (0, 1)) -> None:
        """Prepare the order; `order` holds seed, batch_size, steps and cache_shards."""
        self.index, self.size, self.steps, self.rank = index, size, order["steps"], rank
        source = Source(name="pictures", shard_sizes=index.shard_sizes, ratio=1.0)
        self.order = Order(
            [source], batch_size=order["batch_size"], seed=order["seed"], cache_shards=order.get("cache_shards", 16)
        )
        self.skipped = Skipped()

    def __len__(self) -> int:
        """Return the number of steps."""
        return self.steps

    def __getitem__(self, step: int) -> Tensor:
        """Return the pictures of a step, pixels in [-1, 1]."""
        pictures = []
        for slot in self.order.step(step, rank=self.rank[0], world=self.rank[1]):
            try:
                pictures.append(pixels_of(self.index.read(slot.sample), self.size, "crop"))
            except (BadSample, UnfitSample) as error:
                self.skipped[error.reason] += 1
        if not pictures:
            raise ValueError(f"no picture of step {step} could be read ({dict(self.skipped)}); check the shards.")
        return torch.stack(pictures)


class StepSampler(Sampler[int]):
    """Step numbers from `start` on; its length stays that of the whole run, as Lightning counts from zero."""

    def __init__(self, start: int, steps: int) -> None:
        """Keep the range."""
        self.start, self.steps = start, steps

    def __iter__(self) -> Iterator[int]:
        """Yield step numbers."""
        return iter(range(self.start, self.steps))

    def __len__(self) -> int:
        """Return the steps of the whole run."""
        return self.steps


class StepData(pl.LightningDataModule):
    """Serve batches by step number, beginning at the trainer's global step, so that resuming needs no loader state."""

    def __init__(self, train: Dataset[Any], held_out: Dataset[Any] | None, num_workers: int) -> None:
        """Keep the data sets."""
        super().__init__()
        self.train, self.held_out, self.num_workers = train, held_out, num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        """Continue where the trainer stands."""
        start = self.trainer.global_step if self.trainer else 0
        return self._loader(self.train, start)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Serve the same held-out batches every time."""
        return [] if self.held_out is None else self._loader(self.held_out, 0)

    def _loader(self, dataset: Dataset[Any], start: int) -> DataLoader[Any]:
        sampler = StepSampler(start, len(dataset))  # type: ignore[arg-type]
        workers = self.num_workers
        return DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)


def check_codes(index: ShardIndex, reading: Reading) -> None:
    """Check, before the first step, that the shards carry codes of this image tokenizer.

    Raises:
        ValueError: they carry none, or those of another tokenizer; both fingerprints are named.
    """
    starts = [end - size for end, size in zip(accumulate(index.shard_sizes), index.shard_sizes, strict=True) if size]
    extensions = [extension for start in starts for extension in index.read(start).members if extension.startswith(CODES)]
    found = {extension[len(CODES) : -len(".npy")] for extension in extensions}
    if found != {reading.fingerprint}:
        named = f"codes of {', '.join(sorted(found))}" if found else "no codes"
        raise ValueError(
            f"the shards carry {named}, the image tokenizer is {reading.fingerprint}; "
            "write their codes with `anymodal tokenizers codes` and train on the shards that it makes."
        )
