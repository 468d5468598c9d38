"""What a gradient that is no number does to a step: nothing."""

from typing import Any

import pytest
import torch

from anymodal.learning.config import OptimizerConfig
from anymodal.learning.guard import MAX_BAD_STEPS, BadSteps, clip_or_skip
from anymodal.learning.optimizer import Trained, build_optimizer


def test_gradients_are_clipped_by_what_the_optimizer_holds() -> None:
    weight, other = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3))
    weight.grad, other.grad = torch.tensor([3.0, 0.0, 4.0]), torch.full((3,), torch.nan)
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)
    assert float(clip_or_skip(optimizer, 1.0)) == 5.0
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.0, 0.8]))
    assert other.grad.isnan().all()


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_step_that_is_left_out_leaves_no_trace(name: Any, bad: float) -> None:
    """Weights, averages and the count of steps are those of a run that never met it."""
    ends = []
    for gradients in ([1.0, bad, -2.0], [1.0, -2.0]):
        matrix, vector = torch.nn.Parameter(torch.eye(3)), torch.nn.Parameter(torch.ones(3))
        trained = [Trained("blocks.0.weight", matrix), Trained("norm", vector)]
        optimizer = build_optimizer(trained, OptimizerConfig(name=name, learning_rate=0.1))
        for gradient in gradients:
            matrix.grad, vector.grad = torch.ones(3, 3), torch.full((3,), gradient)
            clip_or_skip(optimizer, 100.0)
            optimizer.step()
        ends.append((matrix.detach(), vector.detach(), optimizer.state_dict()["state"]))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


def test_steps_are_counted_on_the_device() -> None:
    bad, good, none = BadSteps(), torch.tensor(1.0), torch.tensor(torch.nan)
    for norm in (none, good, *[none] * (MAX_BAD_STEPS - 1)):
        bad.add(norm)
    bad.check(7)
    bad.add(none)
    with pytest.raises(ValueError, match=r"not finite in 5 steps in a row \(up to step 8\)"):
        bad.check(8)
    bad.add(good)
    assert not bad.last
    bad.check(9)
