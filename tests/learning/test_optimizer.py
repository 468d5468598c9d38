import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from anymodal.learning.config import OptimizerConfig
from anymodal.learning.optimizer import MuonAdamW, RowsOf, Trained, build_optimizer, orthogonalise, rate_at, trainable


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 4)])
        self.head = nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks[1](self.blocks[0](self.embedding(ids)).tanh()))


def train(net: Net, optimizer: torch.optim.Optimizer, steps: int = 8) -> None:
    torch.manual_seed(1)
    for _ in range(steps):
        loss = net(torch.randint(0, 5, (7,))).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_groups_without_matrices_equal_adamw() -> None:
    config = OptimizerConfig(name="muon", learning_rate=0.01, weight_decay=0.3, betas=(0.8, 0.95), eps=1e-6)
    ours, theirs = Net().double(), Net().double()
    train(ours, MuonAdamW([{"params": list(ours.parameters())}], config))
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.3, "betas": (0.8, 0.95), "eps": 1e-6}
    train(theirs, torch.optim.AdamW(theirs.parameters(), **options))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-10)


def test_a_matrix_takes_one_step_as_the_paper_says() -> None:
    config = OptimizerConfig(name="muon", learning_rate=0.1, weight_decay=0.5)
    weight = nn.Parameter(torch.randn(4, 6, dtype=torch.float64))
    before = weight.detach().clone()
    weight.grad = torch.randn(4, 6, dtype=torch.float64)
    MuonAdamW([{"params": [weight], "matrix": True}], config).step()
    momentum = 0.05 * weight.grad
    direction = orthogonalise(weight.grad + 0.95 * (momentum - weight.grad))
    expected = before * (1 - 0.1 * 0.5) - 0.1 * 0.2 * math.sqrt(6) * direction
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30)])
def test_singular_values_are_pushed_towards_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 100
    pushed = orthogonalise(matrix)
    assert pushed.shape == shape
    values = torch.linalg.svdvals(pushed)
    assert 0.3 < float(values.min()) <= float(values.max()) < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    cosine = (pushed * (left @ right)).sum() / (pushed.norm() * (left @ right).norm())
    assert float(cosine) > 0.96


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_groups_say_what_is_decayed(name: Any) -> None:
    net = Net()
    net.head.bias.requires_grad = False
    optimizer = build_optimizer(trainable(net), OptimizerConfig(name=name))
    names = {id(parameter): name for name, parameter in net.named_parameters()}

    def named(parameters: Iterable[nn.Parameter]) -> set[str]:
        return {names[id(parameter)] for parameter in parameters}

    groups = {(g["weight_decay"], g.get("matrix", False)): named(g["params"]) for g in optimizer.param_groups}
    plain = {"embedding.weight", "blocks.0.bias", "blocks.1.bias"}
    matrices = {"blocks.0.weight", "blocks.1.weight"}
    if name == "muon":
        assert groups == {(0.1, True): matrices, (0.1, False): {"head.weight"}, (0.0, False): plain}
    else:
        assert groups == {(0.1, False): matrices | {"head.weight"}, (0.0, False): plain}
    train(net, optimizer)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_parameter_without_gradient_stays(name: Any) -> None:
    net = Net()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    build_optimizer(trainable(net), OptimizerConfig(name=name)).step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_the_rate_rises_and_falls() -> None:
    config = OptimizerConfig(warmup_steps=10, final_rate=0.1)
    rates = [rate_at(step, config, 110) for step in range(111)]
    assert rates[:3] == [0.1, 0.2, 0.3]
    assert rates[9] == rates[10] == 1.0
    assert math.isclose(rates[60], 0.55)
    assert math.isclose(rates[110], 0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    constant = OptimizerConfig(warmup_steps=0, schedule="constant")
    assert {rate_at(step, constant, 5) for step in range(9)} == {1.0}


def test_rows_share_memory_and_gradient_with_their_matrix() -> None:
    matrix = nn.Parameter(torch.arange(8.0).view(4, 2))
    rows = RowsOf(matrix, 1, 3)
    assert rows.grad is None
    (matrix * matrix).sum().backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad, torch.tensor([[4.0, 6.0], [8.0, 10.0]]))
    before = matrix.detach().clone()
    optimizer = build_optimizer([Trained("head.weight", rows, 0.5)], OptimizerConfig(weight_decay=0.3))
    assert optimizer.param_groups[0]["lr"] == 0.0005
    torch.nn.utils.clip_grad_norm_([rows], 1.0)
    assert float(rows.grad.norm()) == pytest.approx(1.0, abs=1e-5)
    optimizer.step()
    assert bool((matrix[1:3] < before[1:3]).all())
    assert torch.equal(matrix[[0, 3]], before[[0, 3]])
    optimizer.zero_grad()
    assert matrix.grad is None


def test_rows_of_a_matrix_that_is_spread_are_refused() -> None:
    class Spread(torch.Tensor):
        pass

    matrix = nn.Parameter(torch.zeros(4, 2).as_subclass(Spread))
    with pytest.raises(ValueError, match="lies on one device whole, got a Spread; train without sharding"):
        RowsOf(matrix, 1, 3)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_groups_have_the_rates_of_their_parts(name: Any) -> None:
    net = Net()
    rates = {"embedding.weight": 0.1, "blocks.0.weight": 2.0}
    trained = [Trained(each.name, each.parameter, rates.get(each.name, 1.0)) for each in trainable(net)]
    groups = build_optimizer(trained, OptimizerConfig(name=name, learning_rate=0.01)).param_groups
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group.get("matrix", False))
        for group in groups
        for parameter in group["params"]
    }
    assert found["embedding.weight"] == (pytest.approx(0.001), False)
    assert found["blocks.0.weight"] == (0.02, name == "muon")
    assert found["blocks.1.weight"] == (0.01, name == "muon")
    assert found["head.bias"] == (0.01, False)
    assert len(found) == len(list(net.parameters()))
