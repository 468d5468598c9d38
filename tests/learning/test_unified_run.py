"""A run is a function of its configuration: stopping, killing and resuming change nothing."""

import csv
import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from anymodal.data.index import ShardIndex
from anymodal.data.shards import Sample, write_shards
from anymodal.learning.checkpoints import newest, step_of
from anymodal.learning.config import OptimizerConfig, Ratios, RunConfig, StageConfig
from anymodal.learning.unified_run import train_unified
from anymodal.model.folder import ModelFolder

RUN = RunConfig(steps=6, batch_size=6, precision="float32", log_every=1, validate_every=0, checkpoint_every=3)
STAGE = StageConfig(seq_len=256)
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=2)


def train(toy: Any, out: Path, run: RunConfig = RUN, **changes: Any) -> int:
    parts = changes.pop("parts", None) or toy.parts(dropout=0.1)
    settings: dict[str, Any] = {"data": toy.data, "stage": STAGE, "optimizer": OPTIMIZER, **changes}
    return train_unified(parts, run=run, out=out, **settings)


def metrics(out: Path, name: str = "train_loss") -> dict[int, str]:
    with (out / "logs" / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): row[name] for row in csv.DictReader(file) if row.get(name)}


def weights(out: Path) -> dict[str, torch.Tensor]:
    return ModelFolder.load(out / "model").model.state_dict()


@pytest.fixture(scope="module")
def whole(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert train(toy, out) == 0
    return out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stopped_run_resumes_bit_for_bit(
    toy: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: Any, number: int, code: int
) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        interrupt(patch, 2, number=number)
        assert train(toy, tmp_path) == code
    assert signal.getsignal(number) is before
    checkpoint = newest(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert step_of(checkpoint) == 2
    assert train(toy, tmp_path) == 0
    assert metrics(tmp_path) == metrics(whole)
    assert sorted(metrics(tmp_path)) == list(range(6))
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(tmp_path)[name], tensor), name


def test_a_killed_run_resumes_from_its_last_checkpoint(toy: Any, whole: Path, tmp_path: Path, disturb: Any) -> None:
    class Crash(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 5:
                raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        disturb(patch, Crash())
        with pytest.raises(RuntimeError, match="killed"):
            train(toy, tmp_path)
    checkpoint = newest(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert step_of(checkpoint) == 3
    assert train(toy, tmp_path, data=replace(toy.data, num_workers=1)) == 0
    assert metrics(tmp_path) == metrics(whole)
    assert all(torch.equal(weights(tmp_path)[name], tensor) for name, tensor in weights(whole).items())


def test_averaged_weights_survive_a_stop_and_a_second_call(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: Any
) -> None:
    run = replace(RUN, ema_decay=0.5)
    assert train(toy, tmp_path / "whole", run) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        assert train(toy, tmp_path / "halves", run) == 130
    assert train(toy, tmp_path / "halves", run) == 0
    first = weights(tmp_path / "whole")
    assert all(torch.equal(weights(tmp_path / "halves")[name], tensor) for name, tensor in first.items())
    assert train(toy, tmp_path / "whole", run) == 0
    assert all(torch.equal(weights(tmp_path / "whole")[name], tensor) for name, tensor in first.items())
    parts = toy.parts(dropout=0.1)
    table = parts.model.code_of.clone()
    train(toy, tmp_path / "third", run, parts=parts)
    assert torch.equal(parts.model.code_of, table), "an average of ids would be none"


def test_a_stage_trains_its_rows_and_their_average_and_resumes(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: Any
) -> None:
    stage = replace(STAGE, trains=("image_head", "connector"), rates={"connector": 2.0})
    run = replace(RUN, ema_decay=0.3, accumulate=2)

    def tune(out: Path) -> int:
        return train(toy, out, run, stage=stage, parts=toy.parts(heads="shared", dropout=0.1))

    assert tune(tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        assert tune(tmp_path / "halves") == 130
    assert tune(tmp_path / "halves") == 0
    first, before = weights(tmp_path / "whole"), toy.parts(heads="shared").model.state_dict()
    assert all(torch.equal(weights(tmp_path / "halves")[name], tensor) for name, tensor in first.items())
    moved = {name for name, tensor in first.items() if not torch.equal(tensor, before[name])}
    assert moved == {"head.weight", "understanding.connector.0.weight", "understanding.connector.0.bias"}
    rows = toy.parts(heads="shared").model.image_ids
    assert bool((first["head.weight"] != before["head.weight"])[rows].all())
    assert torch.equal(first["head.weight"][: rows[0]], before["head.weight"][: rows[0]])


def test_a_stage_that_does_not_fit_is_refused_before_the_first_step(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no 'image_hed'; did you mean 'image_head'"):
        train(toy, tmp_path / "run", stage=replace(STAGE, trains=("image_hed",)))
    assert not (tmp_path / "run").exists()


def test_the_best_model_is_kept(toy: Any, tmp_path: Path) -> None:
    data = replace(toy.data, held_out=toy.coded)
    run = replace(RUN, validate_every=2, validation_steps=2)
    assert train(toy, tmp_path, run, data=data) == 0
    losses = metrics(tmp_path, "held_out_loss")
    assert sorted(losses) == [1, 3, 5]
    assert {"held_out_text_loss", "held_out_image_loss", "train_image_loss"} <= set(header(tmp_path))
    parts = ModelFolder.load(tmp_path / "model")
    again = train(toy, tmp_path / "again", replace(run, steps=1), data=data, parts=parts)
    assert again == 0


def header(out: Path) -> list[str]:
    return (out / "logs" / "metrics.csv").read_text().splitlines()[0].split(",")


def test_codes_of_another_tokenizer_are_refused_before_the_first_step(toy: Any, tmp_path: Path) -> None:
    parts = toy.parts()
    old = parts.image_tokenizer.fingerprint
    with torch.no_grad():
        next(parts.image_tokenizer.parameters()).add_(1)
    new = parts.image_tokenizer.fingerprint
    with pytest.raises(ValueError, match=rf"codes of the image tokenizer, {new}, and .* carries codes of {old}"):
        train(toy, tmp_path / "run", parts=parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_skipped_is_counted(
    toy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, num_workers: int
) -> None:
    index = ShardIndex.open(toy.coded)
    samples = [index.read(i) for i in range(len(index))]
    bare = [Sample(f"bare-{i}", {"txt": b"a dog", "codes.0000.npy": b"of another tokenizer"}) for i in range(12)]
    write_shards([*samples, *bare], f"{tmp_path}/mixed/%06d.tar")
    data = replace(toy.data, train=f"{tmp_path}/mixed", num_workers=num_workers)
    run = replace(RUN, steps=3, batch_size=12)
    stage = replace(STAGE, ratios=Ratios(draw=1.0, answer=0.0, text=0.0))
    with caplog.at_level(logging.WARNING, logger="anymodal"):
        assert train(toy, tmp_path / "run", run, data=data, stage=stage) == 0
    assert "skipped 12 samples: no codes" in caplog.text  # an epoch


def test_documents_all_of_which_are_too_long_are_a_users_mistake(toy: Any, tmp_path: Path) -> None:
    data = replace(toy.data, num_workers=1)
    with pytest.raises(ValueError, match=r"could be read \(.*'more tokens than stage.seq_len': \d+"):
        train(toy, tmp_path, data=data, stage=replace(STAGE, seq_len=4))
