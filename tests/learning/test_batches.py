"""What a step sees is a function of the seed and the step, in any process."""

import hashlib
import multiprocessing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anymodal.data.index import BadSample, ShardIndex
from anymodal.data.opening import Part
from anymodal.data.samples import Reading, pixels_of
from anymodal.data.shards import Sample, write_shards
from anymodal.learning.batches import (
    EMPTY_STEPS,
    TOO_LONG,
    Deliveries,
    Delivery,
    DocumentBatches,
    PictureBatches,
    Skipped,
    StepData,
    StepSampler,
    check_codes,
)
from anymodal.learning.config import StageConfig
from anymodal.tokens.batch import IGNORE

ORDER = {"batch_size": 6, "seed": 7, "steps": 5}


def make(toy: Any, shards: str = "", **order: int) -> DocumentBatches:
    parts = toy.parts()
    return DocumentBatches(
        ShardIndex.open(shards or toy.coded),
        encoder=parts.encoder(),
        reading=Reading(fingerprint=parts.image_tokenizer.fingerprint, look_size=16, prompt_dropout=0.5),
        stage=StageConfig(seq_len=256),
        order={**ORDER, **order},
    )


def digest(batches: Any, step: int) -> str:
    batch = batches[step]
    tensors = [batch] if isinstance(batch, torch.Tensor) else [batch.ids, batch.targets, batch.look_pixels]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors if tensor is not None)).hexdigest()


def test_a_step_is_the_same_in_another_process(toy: Any) -> None:
    pictures = PictureBatches(ShardIndex.open(toy.plain), size=16, order=ORDER)
    tasks = [(batches, step) for batches in (make(toy), pictures) for step in (4, 1, 3)]
    here = [digest(*task) for task in tasks]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.starmap(digest, tasks[::-1])
    assert there == here[::-1]
    assert len(set(here)) == 6
    assert len(pictures) == 5


def test_pictures_come_as_bytes_and_become_pixels(toy: Any) -> None:
    pictures = PictureBatches(ShardIndex.open(toy.plain), size=16, order=ORDER)
    planes = pictures[0]
    assert planes.dtype == torch.uint8
    pixels = StepData(pictures, None, num_workers=0).on_after_batch_transfer(planes, 0)
    samples = [pictures.index.read(slot.sample) for slot in pictures.order.step(0)]
    assert torch.equal(pixels, torch.stack([pixels_of(sample, 16, "crop") for sample in samples]))


def test_parts_of_the_shards_keep_theirs(toy: Any) -> None:
    sizes = make(toy).index.shard_sizes
    first = Part(0, sizes[:1], ratio=1.0)
    rest = Part(sizes[0], sizes[1:], ratio=4.0)
    parts = toy.parts()
    batches = DocumentBatches(
        ShardIndex.open(toy.coded),
        encoder=parts.encoder(),
        reading=Reading(fingerprint=parts.image_tokenizer.fingerprint, look_size=16),
        stage=StageConfig(seq_len=256),
        order={**ORDER, "batch_size": 10},
        parts=(first, rest),
    )
    slots = [slot for step in range(5) for slot in batches.slots(step)]
    assert [sum(slot.source == i for slot in slots) for i in range(6)] == [5, 20, 4, 16, 1, 4]
    assert batches[0].ids.shape == make(toy, batch_size=10)[0].ids.shape
    pictures = PictureBatches(ShardIndex.open(toy.plain), size=16, order=ORDER, parts=(rest,))
    seen = {digest(pictures, step) for step in range(5)}
    assert seen.isdisjoint(digest(PictureBatches(pictures.index, size=16, order=ORDER), step) for step in range(5))
    read = [rest.start + slot.sample for step in range(5) for slot in pictures.order.step(step)]
    assert min(read) >= sizes[0]


def test_tasks_keep_their_ratios(toy: Any) -> None:
    batches = make(toy, batch_size=10)
    slots = [slot for step in range(5) for slot in batches.slots(step)]
    assert batches.tasks == ["draw", "answer", "text"]
    assert [sum(slot.source == i for slot in slots) for i in range(3)] == [25, 20, 5]
    batch = batches[0]
    assert batch.look_pixels is not None
    assert batch.look_pixels.shape == (4, 3, 16, 16)


def test_another_seed_is_another_order(toy: Any) -> None:
    assert digest(make(toy, seed=8), 0) != digest(make(toy), 0)


def test_a_bad_sample_leaves_its_slot_empty(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = make(toy)
    whole = batches[2]
    bad = batches.slots(2)[0].sample
    original = ShardIndex.read

    def read(index: ShardIndex, number: int) -> Sample:
        if number == bad:
            raise BadSample("crc32 differs", "a.tar", "k", 0)
        return original(index, number)

    monkeypatch.setattr(ShardIndex, "read", read)
    less = Deliveries(batches)[2]
    assert less.skipped["crc32 differs"] >= 1
    assert less.mistake is None
    assert less.batch.num_tokens < whole.num_tokens
    again = Deliveries(batches)[2]
    assert again.skipped == less.skipped, "counts are of one batch"
    monkeypatch.setattr(ShardIndex, "read", lambda *_: (_ for _ in ()).throw(BadSample("cut", "a.tar", "k", 0)))
    none = Deliveries(batches)[2]
    assert none.mistake is not None
    assert "no sample of step 2 could be read ({'cut': 6})" in none.mistake
    assert none.skipped == {"cut": 6}
    assert (none.batch.targets == IGNORE).all()


def test_who_can_read_no_picture_borrows_those_of_another(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ShardIndex.open(toy.plain)
    first, second = (PictureBatches(index, size=16, order=ORDER, rank=(rank, 2)) for rank in range(2))
    whole, bad = second[0], {slot.sample for slot in first.order.step(0, rank=0, world=2)}
    original = ShardIndex.read

    def read(index: ShardIndex, number: int) -> Sample:
        if number in bad:
            raise BadSample("cut", "a.tar", "k", 0)
        return original(index, number)

    monkeypatch.setattr(ShardIndex, "read", read)
    assert torch.equal(first[0], whole)
    assert torch.equal(second[0], whole)
    assert (first.skipped, second.skipped) == ({"cut": 3}, {})
    bad |= {slot.sample for slot in first.order.step(0, rank=1, world=2)}
    for batches in (first, second):
        with pytest.raises(ValueError, match=r"no picture of step 0 could be read \(\{'cut': 6\}\); check the shards"):
            batches[0]


def test_a_step_may_be_empty_but_not_many_in_a_row(toy: Any) -> None:
    data, batches = StepData(make(toy, steps=2 * EMPTY_STEPS), None, num_workers=0), make(toy)
    empty, full = Delivery(batches.blank(), Skipped(cut=6), "nothing read"), Delivery(batches[0], Skipped())
    for _ in range(3):
        for _ in range(EMPTY_STEPS - 1):
            assert data.on_before_batch_transfer(empty, 0) is empty.batch
        assert data.on_before_batch_transfer(full, 0) is full.batch
    assert data.skipped == {"cut": 3 * 6 * (EMPTY_STEPS - 1)}
    for _ in range(EMPTY_STEPS - 1):
        data.on_before_batch_transfer(empty, 0)
    with pytest.raises(ValueError, match="nothing read"):
        data.on_before_batch_transfer(empty, 0)


def test_held_out_batches_are_never_empty(toy: Any) -> None:
    data, batches = StepData(make(toy), None, num_workers=0), make(toy)
    data.trainer = SimpleNamespace(global_step=3, training=False)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="nothing read"):
        data.on_before_batch_transfer(Delivery(batches.blank(), Skipped(cut=6), "nothing read"), 0)


def test_what_was_skipped_is_counted_over_a_resume(toy: Any) -> None:
    data, resumed = (StepData(make(toy), None, num_workers=0) for _ in range(2))
    data.skipped.update({"cut": 2})
    resumed.load_state_dict(data.state_dict())
    resumed.skipped.update({"cut": 1})
    assert resumed.skipped == {"cut": 3}


def test_a_document_longer_than_a_row_is_skipped_and_counted(toy: Any) -> None:
    whole, short = make(toy), make(toy)
    documents = whole[0].documents
    assert documents is not None
    lengths = sorted(
        int(count) for number, count in zip(*documents.unique(return_counts=True), strict=True) if number >= 0
    )
    assert lengths[0] < lengths[-1]
    short.stage = replace(short.stage, seq_len=lengths[-1] - 1)
    delivery = Deliveries(short)[0]
    assert delivery.mistake is None
    assert delivery.skipped == {TOO_LONG: lengths.count(lengths[-1])}
    assert delivery.batch.num_tokens == sum(length for length in lengths if length < lengths[-1])


def test_counts_and_mistakes_reach_the_training_process(toy: Any, tmp_path: Path) -> None:
    bare = [Sample(f"{i}", {"txt": b"a dog", "codes.0000.npy": b"of another tokenizer"}) for i in range(4)]
    index = ShardIndex.open(toy.coded)
    write_shards([index.read(0), *bare], f"{tmp_path}/%06d.tar")
    data = StepData(make(toy, str(tmp_path)), None, num_workers=1)
    data.trainer = SimpleNamespace(global_step=3, training=True)  # type: ignore[assignment]
    loader = data.train_dataloader()
    batches = [data.on_before_batch_transfer(delivery, 0) for delivery in loader]
    assert len(batches) == 2
    assert set(data.skipped) == {"no codes"}
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="^it must hold"):
        data.on_before_batch_transfer(Delivery(None, Skipped(), "it must hold"), 0)
    assert data.on_before_batch_transfer("as it is", 0) == "as it is"


def test_a_resumed_sampler_says_the_length_of_the_run() -> None:
    sampler = StepSampler(3, 6)
    assert list(sampler) == [3, 4, 5]
    assert len(sampler) == 6


def test_prompts_are_targets_where_the_stage_says_so(toy: Any) -> None:
    plain, labelled = make(toy), make(toy)
    labelled.stage = replace(labelled.stage, label_prompt=True)
    batch, more = plain[0], labelled[0]
    assert torch.equal(batch.ids, more.ids), "the ids stay the same"
    assert batch.documents is not None
    kept = batch.targets != IGNORE
    assert torch.equal(more.targets[kept], batch.targets[kept])
    special = toy.parts().model.vocabulary.special
    added = set(more.targets[(more.targets != IGNORE) & ~kept].tolist())
    assert special("user") in added
    assert not added & {special(name) for name in ("bos", "boi", "eoi", "look", "pad")}
    following = torch.roll(batch.ids, -1, 1)
    same_document = batch.documents == torch.roll(batch.documents, -1, 1)
    silent = (more.targets == IGNORE) & same_document & (batch.documents >= 0)
    assert set(following[silent].tolist()) == {special("boi"), special("look"), special("eoi")}


def test_codes_are_checked_in_every_shard(toy: Any, tmp_path: Path) -> None:
    index = ShardIndex.open(toy.coded)
    reading = make(toy).reading
    check_codes(index, reading)
    with pytest.raises(ValueError, match=f"tokenizer, f00d, and .* carries codes of {reading.fingerprint}"):
        check_codes(index, replace(reading, fingerprint="f00d"))
    with pytest.raises(ValueError, match="carries no codes.*anymodal tokenizers codes"):
        check_codes(ShardIndex.open(toy.plain), reading)
    mixed = [toy.coded, toy.plain]
    with pytest.raises(ValueError, match=f"{toy.plain}.* carries no codes"):
        check_codes(ShardIndex.open(mixed), reading)
    write_shards([Sample("0", {"txt": b"a dog"})], f"{tmp_path}/%06d.tar")
    check_codes(ShardIndex.open([toy.coded, str(tmp_path)]), reading)
    with pytest.raises(ValueError, match="carries no codes"):
        check_codes(ShardIndex.open(str(tmp_path)), reading)
