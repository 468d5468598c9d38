"""The loop itself; what it makes of whole runs is tested with the runs."""

import csv
import errno
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from anymodal.learning.batches import StepBatches, StepData
from anymodal.learning.config import OptimizerConfig, RunConfig
from anymodal.learning.fitting import fit, precision_of
from anymodal.learning.objective import Objective


class Numbers(StepBatches):
    """Step k is k."""

    def __getitem__(self, step: int) -> list[torch.Tensor]:
        return [torch.tensor(float(step))]


class Adder(pl.LightningModule):
    """Remember the steps that were seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[float] = []
        self.modes: set[bool] = set()

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(float(batch[0]))
        self.modes.add(self.training)
        self.log("train_loss", batch[0])
        return (self.weight * batch[0]).sum()

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("held_out_loss", batch[0], batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run_to(steps: int, out: Path, **options: Any) -> Adder:
    run = RunConfig(**{"steps": steps, "precision": "float32", "log_every": 1, "checkpoint_every": 4, **options})
    held_out = Numbers(2) if run.validate_every else None
    module = Adder().eval()
    assert fit(module, StepData(Numbers(steps), held_out, 0), run=run, out=out) == 0
    return module


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "logs" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_longer_run_goes_on_where_the_shorter_ended(tmp_path: Path) -> None:
    assert run_to(5, tmp_path, validate_every=2).seen == [0, 1, 2, 3, 4]
    longer = run_to(8, tmp_path, validate_every=2)
    assert longer.seen == [5, 6, 7]
    assert longer.modes == {True}
    assert longer.weight.item() == pytest.approx(-0.1 * sum(range(8)))
    assert [int(row["step"]) for row in rows(tmp_path) if row["train_loss"]] == list(range(8))
    assert [int(row["step"]) for row in rows(tmp_path) if row["held_out_loss"]] == [1, 3, 5, 7]
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.ckpt")) == [
        "step-00000005.ckpt",
        "step-00000008.ckpt",
    ]


def test_a_run_goes_on_with_the_rate_that_it_is_given(tmp_path: Path) -> None:
    class Rated(Objective):
        def __init__(self, rate: float, steps: int) -> None:
            options = OptimizerConfig(learning_rate=rate, weight_decay=rate, warmup_steps=0, schedule="constant")
            super().__init__(options, RunConfig(steps=steps))
            self.weight, self.rates = nn.Parameter(torch.zeros(2, 2)), list[tuple[float, float]]()

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            group = self.trainer.optimizers[0].param_groups[0]
            self.rates.append((group["lr"], group["weight_decay"]))
            return (self.weight * batch[0]).sum()

    def rates(rate: float, steps: int) -> list[tuple[float, float]]:
        module = Rated(rate, steps)
        run = RunConfig(steps=steps, precision="float32", validate_every=0)
        assert fit(module, StepData(Numbers(steps), None, 0), run=run, out=tmp_path) == 0
        return module.rates

    assert rates(0.1, 2) == [(0.1, 0.1)] * 2
    assert rates(0.1, 4) == [(0.1, 0.1)] * 2
    assert rates(0.02, 6) == [pytest.approx((0.02, 0.02))] * 2


def test_a_complete_run_does_nothing_more(tmp_path: Path) -> None:
    run_to(3, tmp_path)
    again = run_to(3, tmp_path)
    assert again.seen == []
    assert again.weight.item() == pytest.approx(-0.3)
    assert len(rows(tmp_path)) == 3


def test_logs_behind_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    run_to(6, tmp_path)
    for path in (tmp_path / "checkpoints").glob("step-00000006*"):
        path.unlink()
    assert run_to(6, tmp_path).seen == [4, 5]
    assert [int(row["step"]) for row in rows(tmp_path)] == list(range(6))


def test_checkpoints_none_of_which_is_whole_stop_the_run(tmp_path: Path) -> None:
    run_to(5, tmp_path)
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="no checkpoint in .* is whole; bring one back, or remove them all"):
        run_to(6, tmp_path)


def test_ctrl_c_before_the_first_step_is_an_interrupt(tmp_path: Path) -> None:
    class Impatient(Adder):
        def on_fit_start(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(Impatient(), StepData(Numbers(2), None, 0), run=RunConfig(precision="float32"), out=tmp_path)


def test_precision_is_told() -> None:
    assert precision_of(RunConfig(precision="bf16")) == "bf16"
    assert precision_of(RunConfig(precision="float32")) == "float32"
    assert precision_of(RunConfig()) in ("bf16", "float32")


def test_tensorboard_shows_what_the_table_holds(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="`pip install anymodal[logs]` brings it")
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    run_to(4, tmp_path)
    run_to(6, tmp_path, checkpoint_every=9)
    (tmp_path / "checkpoints" / "step-00000006.ckpt").unlink()
    run_to(6, tmp_path)  # steps 4 and 5 once more
    shown = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [(each.step, each.value) for each in shown.Scalars("train_loss")] == [(step, step) for step in range(6)]
    assert [float(row["train_loss"]) for row in rows(tmp_path) if row["train_loss"]] == list(range(6))


@pytest.mark.parametrize(
    ("happens", "told"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), (ChildProcessError, "has died")),
        (OSError(errno.ENOSPC, "No space left on device"), (OSError, "No space left on device")),
        (ValueError("a histogram is empty"), (ValueError, "^a histogram is empty$")),
    ],
)
def test_what_happens_while_tensorboard_writes_is_told_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happens: Exception, told: tuple[type[Exception], str]
) -> None:
    boards = pytest.importorskip("torch.utils.tensorboard", reason="`pip install anymodal[logs]` brings it")
    monkeypatch.setattr(boards.SummaryWriter, "add_scalar", lambda *_, **__: (_ for _ in ()).throw(happens))
    with pytest.raises(told[0], match=told[1]):
        run_to(2, tmp_path)
