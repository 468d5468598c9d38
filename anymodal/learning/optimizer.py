"""The optimizer: AdamW, and Muon for matrices."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from anymodal.learning.config import OptimizerConfig

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
MUON_MOMENTUM = 0.95


class MuonAdamW(Optimizer):
    """Muon for groups marked `matrix` (arXiv:2502.16982), AdamW (arXiv:1711.05101) for the others.

    torch.optim.Muon orthogonalises in bfloat16 alone, which processors without such instructions emulate; here it is
    done in the type that the matrices have.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], config: OptimizerConfig) -> None:
        """Take parameter groups with a `matrix` flag."""
        defaults = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps, "matrix": False}
        super().__init__(groups, {**defaults, "weight_decay": config.weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
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


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Group the trainable parameters of `module`: biases, norms and embeddings are not decayed."""
    matrices, decayed, plain = [], [], []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or "embedding" in name:
            plain.append(parameter)
        elif config.name == "muon" and parameter.ndim == 2 and "blocks." in name:
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    flag = {"matrix": True} if config.name == "muon" else {}
    groups: list[dict[str, Any]] = [
        {"params": matrices, **flag},
        {"params": decayed},
        {"params": plain, "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
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


def rate_at(step: int, config: OptimizerConfig, steps: int) -> float:
    """Return the share of the learning rate at a step: linear warm-up, then a cosine or a constant."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
