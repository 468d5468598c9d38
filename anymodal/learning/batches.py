"""Batches by step number: step k is a pure function of (seed, k, rank, plan)."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from anymodal.configuration import to_dict
from anymodal.data.index import BadSample, ShardIndex
from anymodal.data.keyed import KeyedRandom
from anymodal.data.opening import Part
from anymodal.data.order import Order, Slot, Source
from anymodal.data.packing import pack
from anymodal.data.pictures import fit_of, scaled, to_planes
from anymodal.data.samples import CODES, PICTURES, Reading, UnfitSample, document_of, rgb_of
from anymodal.learning.config import StageConfig
from anymodal.learning.distributed import count_over_ranks, is_first
from anymodal.learning.loading import WorkerLoader
from anymodal.learning.sources import sources_of
from anymodal.tokens.batch import Batch
from anymodal.tokens.document import Document, DocumentEncoder, TokenSequence
from anymodal.tokens.vocabulary import Vocabulary

PICTURE_FIT = fit_of("crop")
TOO_LONG = "more tokens than stage.seq_len"
EMPTY_STEPS = 8
"""So many steps in a row without a sample that could be read, and a run ends."""


class Skipped(Counter[str]):
    """Counts, by reason, of samples that were skipped; every one left its slot empty."""


def cannot_serve(tasks: Sequence[str]) -> str:
    """Say that no sample can serve tasks."""
    return (
        f"the shards must hold samples for every task of the stage, got none with what {' and '.join(tasks)} needs "
        f"(captions, codes, questions, pictures or turns); set {', '.join(f'stage.ratios.{task}' for task in tasks)} "
        "to 0, or add such samples."
    )


def order_of(sources: Sequence[Source], order: Mapping[str, int]) -> Order:
    """Order the samples of sources; `order` is as for `DocumentBatches`."""
    return Order(
        sources, batch_size=order["batch_size"], seed=order["seed"], cache_shards=order.get("cache_shards", 16)
    )


class NothingReadError(ValueError):
    """No sample of this process's share of a step could be read."""


class StepBatches(Dataset[Any]):
    """Batches by step number; `skipped` counts what was left out of them, `rank` says whose share they are."""

    def __init__(self, steps: int, rank: tuple[int, int] = (0, 1)) -> None:
        """Prepare for a run of so many steps; `rank` is this process's number and the number of processes."""
        self.steps, self.rank, self.skipped = steps, rank, Skipped()

    def __len__(self) -> int:
        """Return the number of steps."""
        return self.steps

    def blank(self) -> Any:
        """Return what a step learns nothing from, where none of its samples could be read; None ends the run."""
        return None


class DocumentBatches(StepBatches):
    """The packed batch of every step, made of the tasks of a stage.

    All tasks read the same shards, each part of them in an order of its own, of the samples that hold what the task
    needs. A sample that turns out bad leaves its slot empty. `unserved` are the tasks that no sample can serve.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        encoder: DocumentEncoder,
        reading: Reading,
        stage: StageConfig,
        order: Mapping[str, int],
        parts: Sequence[Part] = (),
        rank: tuple[int, int] = (0, 1),
    ) -> None:
        """Prepare the order; `order` holds seed, batch_size, steps and cache_shards.

        Raises:
            ValueError: no sample can serve any of the tasks.
        """
        super().__init__(order["steps"], rank)
        self.index, self.encoder, self.reading, self.stage = index, encoder, reading, stage
        shares: dict[str, float] = {task: share for task, share in to_dict(stage.ratios).items() if share > 0}
        self.sources = sources_of(index, tuple(parts) or (Part(0, index.shard_sizes),), shares, reading)
        self.tasks = list(dict.fromkeys(each.task for each in self.sources))
        self.unserved = [task for task in shares if task not in self.tasks]
        if not self.sources:
            raise ValueError(cannot_serve(self.unserved))
        self.order = order_of([each.source for each in self.sources], order)
        self.seed, self.random = order["seed"], KeyedRandom()

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step."""
        # all are read before the first is encoded: each kind of work stays in the processor's caches
        documents = [document for slot in self.slots(step) if (document := self._document(slot)) is not None]
        sequences = [self.encoder.encode(document) for document in documents]
        fitting = [sequence for sequence in sequences if sequence.ids.numel() <= self.stage.seq_len]
        self.skipped[TOO_LONG] += len(sequences) - len(fitting)
        if not fitting:
            raise NothingReadError(f"no sample of step {step} could be read ({dict(+self.skipped)}); check the shards.")
        if self.stage.label_prompt:
            fitting = [with_labelled_prompts(sequence, self.encoder.vocabulary) for sequence in fitting]
        return self._packed(fitting)

    def blank(self) -> Batch:
        """Return a batch of one token that is no target."""
        pad = self.encoder.vocabulary.special("pad")
        return self._packed([TokenSequence(torch.tensor([pad]), torch.tensor([False]), ())])

    def _packed(self, sequences: Sequence[TokenSequence]) -> Batch:
        return pack(
            sequences,
            seq_len=self.stage.seq_len,
            pad_id=self.encoder.vocabulary.special("pad"),
            look_tokens=self.encoder.look_tokens,
        )

    def slots(self, step: int) -> list[Slot]:
        """Return what this rank reads at a step."""
        return self.order.step(step, rank=self.rank[0], world=self.rank[1])

    def _document(self, slot: Slot) -> Document | None:
        random = self.random.at((self.seed, slot.source), (slot.epoch, slot.sample))
        source = self.sources[slot.source]
        try:
            sample = source.index.read(source.part.start + slot.sample)
            return document_of(sample, source.task, self.reading, random)
        except (BadSample, UnfitSample) as error:
            self.skipped[error.reason] += 1
            return None


class PictureBatches(StepBatches):
    """The pictures of every step, for image tokenizers: bytes, of which `StepData` makes pixels on the device."""

    def __init__(
        self,
        index: ShardIndex,
        *,
        size: int,
        order: Mapping[str, int],
        parts: Sequence[Part] = (),
        rank: tuple[int, int] = (0, 1),
    ) -> None:
        """Prepare the order; `order` holds seed, batch_size, steps and cache_shards."""
        super().__init__(order["steps"], rank)
        self.index, self.size = index, size
        self.parts = tuple(parts) or (Part(0, index.shard_sizes),)
        names = ["pictures"] if len(self.parts) == 1 else [f"pictures {number}" for number in range(len(self.parts))]
        sources = [
            Source(name=name, shard_sizes=part.shard_sizes, ratio=part.ratio)
            for name, part in zip(names, self.parts, strict=True)
        ]
        self.order = order_of(sources, order)

    def __getitem__(self, step: int) -> UInt8[Tensor, "b 3 h w"]:
        """Return the pictures of a step; of another process's share where none of this one's can be read."""
        rank, world = self.rank
        bad: Counter[str] = Counter()
        for turn in range(world):
            slots = self.order.step(step, rank=(rank + turn) % world, world=world)
            found = [self._picture(slot) for slot in slots]
            bad.update(each for each in found if isinstance(each, str))
            if turn == 0:
                self.skipped += bad
            if pictures := [each for each in found if not isinstance(each, str)]:
                return torch.stack(pictures)
        raise ValueError(f"no picture of step {step} could be read ({dict(bad)}); check the shards.")

    def _picture(self, slot: Slot) -> UInt8[Tensor, "3 h w"] | str:
        """Return a picture, or why it cannot be read."""
        try:
            picture = rgb_of(self.index.read(self.parts[slot.source].start + slot.sample))
            return to_planes(picture, self.size, self.size, fit=PICTURE_FIT)
        except (BadSample, UnfitSample) as error:
            return error.reason


@dataclass(frozen=True)
class Delivery:
    """A batch on its way from a worker, with what was skipped for it, or the user's mistake that stands in its way.

    A batch beside a mistake is one without targets, which a step may have, but not many steps in a row.
    """

    batch: Any
    skipped: Skipped
    mistake: str | None = None


class Deliveries(Dataset[Delivery]):
    """Make batches such that counts and mistakes arrive in the training process."""

    def __init__(self, dataset: StepBatches) -> None:
        """Deliver the batches of `dataset`."""
        self.dataset = dataset

    def __getitem__(self, step: int) -> Delivery:
        """Make the batch of a step."""
        self.dataset.skipped.clear()
        try:
            batch, mistake = self.dataset[step], None
        except NothingReadError as error:
            batch, mistake = self.dataset.blank(), str(error)
        except ValueError as error:
            batch, mistake = None, str(error)
        return Delivery(batch=batch, skipped=Skipped(+self.dataset.skipped), mistake=mistake)


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
    """Serve batches by step number, beginning at the trainer's global step, so that resuming needs no loader state.

    `skipped` counts what training, not validation, went without.
    """

    def __init__(
        self, train: StepBatches, held_out: StepBatches | None, num_workers: int, worker_timeout_s: float = 0.0
    ) -> None:
        """Keep the data sets; with a timeout, processes that take longer for a batch end the run."""
        super().__init__()
        self.train, self.held_out = train, held_out
        self.num_workers, self.worker_timeout_s = num_workers, worker_timeout_s
        self.skipped = Skipped()
        self._empty = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: what all processes have skipped; every process must call it."""
        return {"skipped": dict(count_over_ranks(self.skipped))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting in the first process."""
        if is_first():
            self.skipped = Skipped(state_dict["skipped"])

    def setup(self, stage: str) -> None:
        """Take this process's share of every batch."""
        assert self.trainer is not None, "a trainer sets its data up"
        for batches in (self.train, self.held_out):
            if batches is not None:
                batches.rank = (self.trainer.global_rank, self.trainer.world_size)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Unwrap a batch and count what was skipped for it.

        Raises:
            ValueError: the shards do not fit the run.
        """
        if not isinstance(batch, Delivery):
            return batch
        trains = self.trainer is None or self.trainer.training
        if trains:
            self._empty = self._empty + 1 if batch.mistake is not None else 0
        too_many = not trains or self._empty == min(EMPTY_STEPS, len(self.train))  # a held-out loss is of something
        if batch.mistake is not None and (batch.batch is None or too_many):
            raise ValueError(batch.mistake)
        if trains:
            self.skipped.update(batch.skipped)
        return batch.batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make pixels in [-1, 1] of pictures that came as bytes."""
        is_picture = isinstance(batch, Tensor) and batch.dtype == torch.uint8
        return scaled(batch, PICTURE_FIT.scale) if is_picture else batch

    def train_dataloader(self) -> DataLoader[Any]:
        """Continue where the trainer stands."""
        start = self.trainer.global_step if self.trainer else 0
        return self._loader(self.train, start)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Serve the same held-out batches every time."""
        return [] if self.held_out is None else self._loader(self.held_out, 0)

    def _loader(self, dataset: StepBatches, start: int) -> DataLoader[Delivery]:
        sampler = StepSampler(start, len(dataset))
        return WorkerLoader(Deliveries(dataset), sampler, num_workers=self.num_workers, timeout_s=self.worker_timeout_s)


def check_codes(index: ShardIndex, reading: Reading) -> None:
    """Check, before the first step, that the shards carry codes of this image tokenizer, by their indexes.

    Raises:
        ValueError: they carry none, or those of another tokenizer; both fingerprints are named.
    """
    found = [{match[1] for name in names if (match := CODES.fullmatch(name))} for names in index.extensions]
    pictured = [any(name.rpartition(".")[2] in PICTURES for name in names) for names in index.extensions]
    for shard, codes, pictures in zip(index.shards, found, pictured, strict=True):
        if reading.fingerprint in codes or (not codes and not pictures and any(found)):
            continue
        named = f"codes of {', '.join(sorted(codes))}" if codes else "no codes"
        raise ValueError(
            f"the shards must carry codes of the image tokenizer, {reading.fingerprint}, and {shard} carries {named}; "
            "write their codes with `anymodal tokenizers codes` and train on the shards that it makes."
        )


def with_labelled_prompts(sequence: TokenSequence, vocabulary: Vocabulary) -> TokenSequence:
    """Make every id a target that is not of a picture: prompts, and what stands around turns; the ids stay the same."""
    ids = sequence.ids
    begin, end = (ids == vocabulary.special(name) for name in ("boi", "eoi"))
    outside = begin.cumsum(0) == end.cumsum(0)
    loss = sequence.loss | (outside & ~end)
    loss[0] = False  # nothing stands before the first id that could predict it
    return replace(sequence, loss=loss)
