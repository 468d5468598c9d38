import lightning.pytorch as pl
import torch

from anymodal.learning.averaging import Averaging
from anymodal.learning.config import OptimizerConfig, RunConfig
from anymodal.learning.objective import Objective


def test_the_average_follows_the_weights_and_its_count_stays_on_the_host() -> None:
    objective = Objective(OptimizerConfig(), RunConfig())
    objective.weight = torch.nn.Parameter(torch.zeros(2))
    objective.register_buffer("ids", torch.tensor([3]))
    averaging, trainer = Averaging(0.75), pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    averaging.setup(trainer, objective, "fit")
    average = averaging._average_model
    assert average is not None
    expected = torch.zeros(2)
    for step, value in enumerate((4.0, 8.0, 0.0)):
        with torch.no_grad():
            objective.weight.fill_(value)
        objective.ids.fill_(step)  # type: ignore[operator]
        average.update_parameters(objective)
        expected = torch.full((2,), value) if step == 0 else 0.75 * expected + 0.25 * value
    held = average.module.state_dict()
    torch.testing.assert_close(held["weight"], expected)
    assert held["ids"].tolist() == [2], "buffers are copied"
    assert average.n_averaged.device.type == "cpu"
