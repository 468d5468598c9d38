"""The optimizer: AdamW, and Muon for matrices, at a rate of its own for every part."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from anymodal.learning.config import OptimizerConfig

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
MUON_MOMENTUM = 0.95


class MuonAdamW(Optimizer):
    """Muon for groups marked `matrix` (arXiv:2502.16982), AdamW (arXiv:1711.05101) for the others.

    torch.optim.Muon orthogonalises in bfloat16 alone, which processors without such instructions emulate; here it is
    done in the type that the matrices have.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: Iterable[dict[str, Any]], config: OptimizerConfig) -> None:
        """Take parameter groups with a `matrix` flag."""
        defaults = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps, "matrix": False}
        super().__init__(groups, {**defaults, "weight_decay": config.weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, or none where `found_inf` says so, as torch's fused ones do."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if self.found_inf is not None and bool(self.found_inf):  # here the host waits for the device, once a step
            return result
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._muon if group["matrix"] else self._adam
                parameter.sub_(update(parameter, parameter.grad, group), alpha=group["lr"])
        return result

    def _muon(self, parameter: Tensor, gradient: Tensor, _group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        momentum = state.setdefault("momentum", torch.zeros_like(parameter))
        momentum.lerp_(gradient, 1 - MUON_MOMENTUM)
        direction = orthogonalise(gradient.lerp(momentum, MUON_MOMENTUM))
        return direction * (0.2 * math.sqrt(max(parameter.shape)))

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        state["step"] += 1
        beta_1, beta_2 = group["betas"]
        state["mean"].lerp_(gradient, 1 - beta_1)
        state["square"].lerp_(gradient.square(), 1 - beta_2)
        scale = (state["square"] / (1 - beta_2 ** state["step"])).sqrt_().add_(group["eps"])
        return state["mean"] / (scale * (1 - beta_1 ** state["step"]))


def orthogonalise(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Push the singular values of a matrix towards one (Newton-Schulz, arXiv:2502.16982 equation 3)."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class RowsOf(nn.Parameter):
    """Rows of a matrix that learn apart from its other rows; values and gradient are the matrix's own memory.

    >>> matrix = nn.Parameter(torch.zeros(3, 2))
    >>> rows = RowsOf(matrix, 1, 2)
    >>> matrix.sum().backward()
    >>> torch.optim.SGD([rows], lr=1.0).step()
    >>> matrix.tolist()
    [[0.0, 0.0], [-1.0, -1.0], [0.0, 0.0]]
    """

    matrix: nn.Parameter
    block: slice

    def __new__(cls, matrix: nn.Parameter, start: int, end: int) -> "RowsOf":
        """Take the rows [`start`, `end`).

        Raises:
            ValueError: the matrix is spread over devices.
        """
        rows = super().__new__(cls, matrix.detach()[start:end])
        if type(rows) is not cls:
            kind = type(matrix.data).__name__
            raise ValueError(
                f"rows of a matrix train apart only where it lies on one device whole, got a {kind}; "
                "train without sharding, or all rows at one rate."
            )
        rows.matrix, rows.block = matrix, slice(start, end)
        return rows

    @property
    def grad(self) -> Tensor | None:
        """What the matrix has of a gradient in these rows."""
        return None if self.matrix.grad is None else self.matrix.grad[self.block]

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is None:
            self.matrix.grad = None
        else:
            assert self.matrix.grad is not None, "rows have a gradient where their matrix has one"
            self.matrix.grad[self.block] = value


@dataclass(frozen=True)
class Trained:
    """A parameter that learns, and the factor on its learning rate."""

    name: str
    parameter: nn.Parameter
    rate: float = 1.0


def trainable(module: nn.Module) -> list[Trained]:
    """Return all that is not frozen, at one rate."""
    return [Trained(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def build_optimizer(trained: Iterable[Trained], config: OptimizerConfig) -> Optimizer:
    """Group parameters by rate and kind: biases, norms and embeddings are not decayed."""
    groups: dict[tuple[float, str], list[nn.Parameter]] = {}
    for each in trained:
        groups.setdefault((each.rate, kind_of(each, config)), []).append(each.parameter)
    options: dict[str, dict[str, Any]] = {"matrices": {"matrix": True}, "decayed": {}, "plain": {"weight_decay": 0.0}}
    rates = sorted({rate for rate, _ in groups}, reverse=True)
    filled: list[dict[str, Any]] = [
        {"params": groups[rate, kind], "lr": config.learning_rate * rate, **options[kind]}
        for rate in rates
        for kind in options
        if (rate, kind) in groups
    ]
    if config.name == "muon":
        return MuonAdamW(filled, config)
    return torch.optim.AdamW(
        filled,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def kind_of(trained: Trained, config: OptimizerConfig) -> str:
    """Return how a parameter learns: as one of the "matrices" of Muon, "decayed", or "plain"."""
    if trained.parameter.ndim < 2 or "embedding" in trained.name:
        return "plain"
    if config.name == "muon" and trained.parameter.ndim == 2 and "blocks." in trained.name:
        return "matrices"
    return "decayed"


class Schedule(LambdaLR):
    """Rates over steps; what a run is configured with holds, and not what the checkpoint that it goes on from had."""

    def __init__(self, optimizer: Optimizer, rate: Callable[[int], float]) -> None:
        """Multiply the rate of every group by `rate(step)`."""
        self._options = [{name: each[name] for name in each if name != "params"} for each in optimizer.param_groups]
        super().__init__(optimizer, rate)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {name: value for name, value in super().state_dict().items() if name != "_options"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the step of a checkpoint; the optimizer has read its own state of it before."""
        before = state_dict["base_lrs"]
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs})
        factors = [now / old if old else 0.0 for now, old in zip(self.base_lrs, before, strict=True)]
        self._last_lr = [rate * factor for rate, factor in zip(self._last_lr, factors, strict=True)]
        groups = zip(self.optimizer.param_groups, self._options, self.base_lrs, self._last_lr, strict=True)
        for group, options, base, rate in groups:
            group.update({**options, "initial_lr": base, "lr": rate})


def rate_at(step: int, config: OptimizerConfig, steps: int) -> float:
    """Return the share of the learning rate at a step: linear warm-up, then a cosine or a constant."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
