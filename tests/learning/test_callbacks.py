import csv
import signal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar

from anymodal.learning.callbacks import Bar, Best, Gauges, ProgressLines, Showing, Speed, StopAtBorder, callbacks_for
from anymodal.learning.checkpoints import StepCheckpoints
from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
from anymodal.learning.objective import Objective
from anymodal.learning.unified_run import train_unified


def trainer_at(step: int, **attributes: Any) -> Any:
    defaults = {"global_step": step, "max_steps": 10, "should_stop": False, "is_global_zero": True, "world_size": 1}
    return Mock(spec=pl.Trainer, **{**defaults, **attributes})


def test_a_signal_stops_at_the_border_and_the_second_at_once() -> None:
    stop, trainer, module = (
        StopAtBorder(),
        trainer_at(1, enable_validation=True, val_check_batch=4),
        pl.LightningModule(),
    )
    before = signal.getsignal(signal.SIGTERM)
    with stop.restored():
        stop.on_train_start(trainer, module)
        stop.on_train_batch_end(trainer, module, None, None, 0)
        assert not trainer.should_stop
        signal.raise_signal(signal.SIGTERM)
        stop.on_train_batch_end(trainer, module, None, None, 0)
        assert trainer.should_stop
        assert trainer.limit_val_batches == 0, "a stop does not wait for a validation"
        trainer.limit_val_batches = 5
        stop.on_train_batch_end(trainer, module, None, None, 3)
        assert trainer.limit_val_batches == 5, "but for that of this step, which a run that resumes would leave out"
        assert stop.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_bar_reads_metrics_when_logs_do(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, read = Bar(), list[int]()

    def metrics(_: Any, trainer: Any, __: Any) -> dict[str, int]:
        read.append(trainer.global_step)
        return {"loss": trainer.global_step}

    monkeypatch.setattr(RichProgressBar, "get_metrics", metrics)
    shown = [bar.get_metrics(trainer_at(step, log_every_n_steps=3), pl.LightningModule()) for step in range(1, 8)]
    assert read == [1, 3, 6]
    assert [each["loss"] for each in shown] == [1, 1, 3, 3, 3, 6, 6]


def test_speed_leaves_validation_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    logged: dict[str, float] = {}
    module = pl.LightningModule()
    module.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign]
    speed, batch = Speed(), torch.zeros(6, 3)
    clock[0] = 100.0
    loader = Mock(waited_s=7.0)
    speed.on_train_start(trainer_at(0, train_dataloader=loader), module)
    for step, (waited, computed) in enumerate([(1.0, 3.0), (0.0, 4.0)], start=1):
        loader.waited_s += waited
        trainer = trainer_at(step, log_every_n_steps=2, train_dataloader=loader)
        clock[0] += waited + computed  # what is saved between two steps is no wait
        speed.on_train_batch_end(trainer, module, None, batch, 0)
        clock[0] += 50.0
        speed.on_validation_end(trainer, module)
    assert logged == {"pictures_per_second": 12 / 8, "data_wait_share": 1 / 8}


def test_a_run_logs_its_rates_its_speed_and_what_it_skips(toy: Any, tmp_path: Path) -> None:
    stage = StageConfig(seq_len=256, rates={"understanding": 0.5})
    run = RunConfig(steps=4, batch_size=6, log_every=2, validate_every=0, precision="float32")
    optimizer = OptimizerConfig(learning_rate=0.01, warmup_steps=0, schedule="constant")
    parts = toy.parts()
    assert train_unified(parts, data=toy.data, stage=stage, optimizer=optimizer, run=run, out=tmp_path) == 0
    with (tmp_path / "logs" / "metrics.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["mfu"]]
    assert len(rows) == 2
    for row in rows:
        assert float(row["learning_rate"]) == pytest.approx(0.01)
        assert float(row["learning_rate_understanding"]) == pytest.approx(0.005)
        assert float(row["tokens_per_second"]) > 0
        assert 0 <= float(row["data_wait_share"]) <= 1
        assert 0 < float(row["mfu"]) < 1
        assert float(row["gradient_norm"]) > 0
        assert 1 < float(row["codebook_perplexity"]) <= 16


def test_skipped_samples_are_logged_by_reason() -> None:
    module, logged = Objective(OptimizerConfig(), RunConfig(steps=100)), dict[str, float]()
    module.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign]
    for step in (1, 2):
        trainer = trainer_at(step, log_every_n_steps=2, datamodule=Mock(skipped={"no codes": 3 * step}))
        Gauges().on_train_batch_end(trainer, module, None, torch.zeros(1), 0)
    assert logged == {"skipped_no_codes": 6.0, "learning_rate": pytest.approx(1e-3 * 2 / 50)}


def test_the_lowest_loss_is_kept_over_a_resume() -> None:
    saved: list[float] = []
    best, module = Best(lambda _, loss: saved.append(loss)), pl.LightningModule()
    for loss in (3.0, 2.0, 2.5):
        metrics = {"held_out_loss": torch.tensor(loss)}
        best.on_validation_epoch_end(trainer_at(1, callback_metrics=metrics, sanity_checking=False), module)
    assert saved == [3.0, 2.0]
    resumed = Best(lambda _, loss: saved.append(loss))
    resumed.load_state_dict(best.state_dict())
    metrics = {"held_out_loss": torch.tensor(2.1)}
    resumed.on_validation_epoch_end(trainer_at(1, callback_metrics=metrics, sanity_checking=False), module)
    resumed.on_validation_epoch_end(trainer_at(1, callback_metrics={}, sanity_checking=False), module)
    assert saved == [3.0, 2.0]


def test_showing_leaves_no_trace() -> None:
    module, shown = Objective(OptimizerConfig(), RunConfig()), list[int]()

    def show(step: int) -> None:
        assert not module.training
        torch.rand(3)
        shown.append(step)

    showing = Showing(2, show)
    state = torch.get_rng_state()
    for step in (1, 2, 3, 4):
        showing.on_train_batch_end(trainer_at(step), module, None, None, 0)
    assert shown == [2, 4]
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)


def test_lines_tell_the_time_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    lines, module = ProgressLines(every_s=10.0), pl.LightningModule()
    metrics = {"train_loss": torch.tensor(1.5), "tokens_per_second": torch.tensor(12345.6)}
    lines.on_train_start(trainer_at(4), module)
    with caplog.at_level("INFO", logger="anymodal"):
        for step, now in ((5, 6.0), (6, 12.0), (7, 13.0), (10, 15.0)):
            clock[0] = now
            lines.on_train_batch_end(trainer_at(step, progress_bar_metrics=metrics), module, None, None, 0)
    shown = "train_loss 1.5  tokens_per_second 12,346"
    assert caplog.messages == [f"step 6/10  24 s left  {shown}", f"step 10/10  0 s left  {shown}"]


def test_checkpoints_come_behind_the_stop(tmp_path: Path) -> None:
    kinds = [type(callback) for callback in callbacks_for(tmp_path, 3)]
    assert kinds.index(StopAtBorder) < kinds.index(StepCheckpoints)
