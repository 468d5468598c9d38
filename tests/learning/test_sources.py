"""Shards of unlike samples: every step keeps the ratios of the tasks, over the samples that can serve them."""

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anymodal.data.index import ShardIndex
from anymodal.data.opening import Part
from anymodal.data.samples import Reading, picture_names
from anymodal.data.shards import Sample, write_shards
from anymodal.learning.batches import Deliveries, DocumentBatches
from anymodal.learning.config import Ratios, RunConfig, StageConfig
from anymodal.learning.sources import needs_of, sources_of
from anymodal.learning.unified_run import document_batches

RATIOS = Ratios(draw=0.4, answer=0.4, text=0.2)
STEPS = 24


@pytest.fixture
def mixed(toy: Any, tmp_path: Path) -> ShardIndex:
    """Write shards of 24 samples that serve all tasks, 24 captions, 12 pictures and 8 questions about nothing."""
    whole = ShardIndex.open(toy.coded)
    samples = [replace(whole.read(number), key=f"whole-{number}") for number in range(len(whole))]
    samples += [Sample(f"text-{i}", {"txt": b"a dog"}) for i in range(24)]
    name = picture_names(samples[0])[0]
    samples += [Sample(f"bare-{i}", {name: samples[i].members[name]}) for i in range(12)]
    asked = json.dumps({"questions": [{"question": "who ?", "answer": "a dog"}]}).encode()
    samples += [Sample(f"asked-{i}", {"json": asked, "txt": b"a dog"}) for i in range(8)]
    write_shards(samples[::2] + samples[1::2], f"{tmp_path}/mixed/%06d.tar", samples_per_shard=9)
    return ShardIndex.open(f"{tmp_path}/mixed")


def batches_of(toy: Any, index: ShardIndex, rank: tuple[int, int] = (0, 1), **changes: Any) -> DocumentBatches:
    parts = toy.parts()
    reading = Reading(fingerprint=parts.image_tokenizer.fingerprint, look_size=16)
    order = {"batch_size": 10, "seed": 3, "steps": STEPS, "cache_shards": 2}
    stage = StageConfig(seq_len=256, ratios=RATIOS)
    settings: dict[str, Any] = {"encoder": parts.encoder(), "reading": reading, "stage": stage, "order": order}
    return DocumentBatches(index, rank=rank, **{**settings, **changes})


def test_every_step_keeps_the_ratios_over_what_can_serve(toy: Any, mixed: ShardIndex) -> None:
    batches = batches_of(toy, mixed)
    seen: dict[str, list[str]] = {"draw": [], "answer": [], "text": []}
    for step in range(STEPS):
        delivery = Deliveries(batches)[step]
        assert not delivery.skipped
        assert int(delivery.batch.documents.max()) + 1 == 10
        slots = batches.slots(step)
        assert Counter(batches.sources[slot.source].task for slot in slots) == {"draw": 4, "answer": 4, "text": 2}
        for slot in slots:
            source = batches.sources[slot.source]
            seen[source.task].append(source.index.key(source.part.start + slot.sample))
    assert len(set(seen["draw"][:24])) == len(set(seen["answer"][:24])) == 24, "an epoch of what serves"
    assert {key.partition("-")[0] for task in ("draw", "answer") for key in seen[task]} == {"whole"}
    assert len(set(seen["text"])) == 48, "56 samples have captions"


def test_ranks_share_what_one_process_sees_and_any_step_comes_alone(toy: Any, mixed: ShardIndex) -> None:
    whole, ranks = batches_of(toy, mixed), [batches_of(toy, mixed, (rank, 2)) for rank in range(2)]
    for step in (17, 3):
        assert sorted(slot for each in ranks for slot in each.slots(step)) == sorted(whole.slots(step))


def test_shards_of_like_samples_are_read_in_the_order_of_before(toy: Any) -> None:
    index = ShardIndex.open(toy.coded)
    batches = batches_of(toy, index)
    assert all(each.index is index for each in batches.sources)
    assert [each.source.ratio for each in batches.sources] == [0.4, 0.4, 0.2]


def test_a_task_keeps_its_share_where_only_some_parts_can_serve_it(toy: Any, tmp_path: Path) -> None:
    write_shards([Sample(f"{i}", {"txt": b"a dog"}) for i in range(9)], f"{tmp_path}/text/%d.tar", samples_per_shard=4)
    index = ShardIndex.open([str(tmp_path / "text"), toy.coded])
    sizes = index.shard_sizes
    parts = (Part(0, sizes[:3], 1.0), Part(9, sizes[3:], 3.0))
    found = sources_of(index, parts, {"draw": 0.5, "text": 0.5}, Reading(fingerprint="f00d", look_size=16))
    assert {each.source.name: each.source.ratio for each in found} == {"draw 1": 2.0, "text 0": 0.5, "text 1": 1.5}
    assert found[0].index.read(found[0].part.start).key == index.read(9).key


def test_a_task_that_no_sample_can_serve_is_refused(toy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage, run = StageConfig(seq_len=256, ratios=Ratios(draw=0.5, chat=0.5)), RunConfig(batch_size=4)
    parts = toy.parts()
    with pytest.raises(ValueError, match=r"got none with what chat needs .*; set stage.ratios.chat to 0, or add such"):
        document_batches(parts, toy.data, toy.coded, stage, run)
    turns = [{"role": "user", "parts": [{"text": "hi"}]}, {"role": "assistant", "parts": [{"text": "yes"}]}]
    index = ShardIndex.open(toy.coded)
    chats = [Sample(f"{i}", {"json": json.dumps({"turns": turns}).encode()}) for i in range(4)]
    write_shards([*(index.read(i) for i in range(len(index))), *chats], f"{tmp_path}/%d.tar")
    data = replace(toy.data, train=str(tmp_path), held_out=toy.coded)
    assert document_batches(parts, data, data.train, stage, run).tasks == ["draw", "answer", "text", "chat"]
    with caplog.at_level(logging.WARNING, logger="anymodal"):
        assert document_batches(parts, data, toy.coded, stage, run).tasks == ["draw", "answer", "text"]
    assert f"held-out losses are without ['chat'], for which {toy.coded} hold no sample" in caplog.text


def test_needs_follow_how_pictures_are_read() -> None:
    seen = Reading(fingerprint="f00d", look_size=16, prompt_dropout=1.0)
    assert needs_of("draw", seen, recorded=False) == ("codes",)
    assert needs_of("answer", seen, recorded=False) == ("questions", "picture")
    assert needs_of("answer", replace(seen, look_size=None), recorded=False) == ("questions", "codes")
    assert needs_of("describe", replace(seen, look_size=None), recorded=True) == ("caption", "picture")
