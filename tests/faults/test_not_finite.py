"""A loss or a gradient that is no number: the step is left out, and five of them in a row end the run."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from anymodal.learning.checkpoints import DurableCheckpointIO, newest, step_of

WORDS = ("--run.steps", "9", "--run.validate_every", "0")


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = DurableCheckpointIO().load_checkpoint(checkpoint)["state_dict"]
    return state


@pytest.mark.usefixtures("tally")
@pytest.mark.parametrize(
    ("where", "value"), [("loss", "nan"), ("loss", "inf"), ("gradient", "nan"), ("gradient", "-inf")]
)
def test_one_step_is_left_out(programs: Any, tmp_path: Path, where: str, value: str, long: bool) -> None:
    if not long and (where, value) in (("loss", "inf"), ("gradient", "nan")):
        pytest.skip("in the long form")
    spoiled = {"steps": [3, 4, 6], "where": where, "value": value}
    words = (*WORDS, "--run.checkpoint_every", "1", "--run.ema_decay", "0")
    assert programs(tmp_path, *words, "--run.steps", "4", **spoiled).code == 0
    before, after = (weights(tmp_path / "checkpoints" / f"step-0000000{step}.ckpt") for step in (3, 4))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), "the step changed nothing"
    ended = programs(tmp_path, *words, **spoiled)
    assert ended.code == 0, ended.log
    last = weights(tmp_path / "checkpoints" / "step-00000009.ckpt")
    assert all(bool(tensor.isfinite().all()) for tensor in last.values())
    assert not all(torch.equal(last[name], tensor) for name, tensor in before.items()), "it went on learning"


@pytest.mark.usefixtures("tally")
def test_five_in_a_row_end_the_run(programs: Any, tmp_path: Path) -> None:
    ended = programs(tmp_path, *WORDS, steps=[3, 4, 5, 6, 7], where="loss", value="nan")
    assert ended.code == 2, ended.log
    assert re.search("error: the gradient was not finite in 5 steps in a row .* lower the learning rate", ended.log)
    kept = newest(tmp_path / "checkpoints")
    assert kept is not None and step_of(kept) == 6
    assert all(bool(tensor.isfinite().all()) for tensor in weights(kept).values())
    again = programs(tmp_path, *WORDS)
    assert again.code == 0, again.log
