from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anymodal.model import loss as module
from anymodal.model.loss import token_loss


class Scaled(nn.Linear):
    """A head that is more than its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


HEADS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 13, bias=False),
    "with a bias": lambda: nn.Linear(6, 13),
    "sequential": lambda: nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 13)),
    "another": lambda: Scaled(6, 13),
}


@pytest.mark.parametrize("chunk_logits", [2**24, 40])
@pytest.mark.parametrize("kind", list(HEADS))
def test_equals_cross_entropy_with_its_gradients(monkeypatch: pytest.MonkeyPatch, kind: str, chunk_logits: int) -> None:
    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk_logits)
    torch.manual_seed(0)
    head = HEADS[kind]().double()
    hidden = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 13, (10,))
    result = token_loss(head, hidden, targets, 13, z_loss=0.1)
    logits = head(hidden)
    nats = F.cross_entropy(logits, targets, reduction="sum")
    plain = nats + 0.1 * logits.logsumexp(-1).square().sum()
    torch.testing.assert_close(result.nats, nats.detach())
    torch.testing.assert_close(result.total, plain)
    torch.testing.assert_close(result.mean, plain / 10)
    torch.testing.assert_close(result.max_logit, logits.abs().max().detach())
    assert int(result.correct) == int((logits.argmax(-1) == targets).sum())
    assert int(result.count) == 10
    ours = torch.autograd.grad(3 * result.total, [hidden, *head.parameters()])
    for mine, theirs in zip(ours, torch.autograd.grad(3 * plain, [hidden, *head.parameters()]), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_only_what_learns_gets_a_gradient() -> None:
    head, hidden = nn.Linear(6, 13, bias=False), torch.randn(4, 6, requires_grad=True)
    head.requires_grad_(False)
    token_loss(head, hidden, torch.arange(4), 13).total.backward()
    assert hidden.grad is not None
    assert head.weight.grad is None
    with torch.no_grad():
        assert not token_loss(head, hidden, torch.arange(4), 13).total.requires_grad


def test_gradients_are_handed_out_once() -> None:
    result = token_loss(nn.Linear(6, 13), torch.randn(4, 6), torch.arange(4), 13)
    result.total.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="compute the loss again"):
        result.total.backward()


def test_logits_of_a_batch_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_LOGITS", 64 * 50)
    head, hidden = nn.Linear(6, 64, bias=False), torch.randn(1000, 6, requires_grad=True)
    sizes = list[int]()

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.extend(each.numel() for each in tree_leaves(out) if isinstance(each, Tensor))
            return out

    with Sizes():  # type: ignore[no-untyped-call]
        token_loss(head, hidden, torch.zeros(1000, dtype=torch.long), 64).total.backward()
    assert max(sizes) == max(hidden.numel(), 64 * 50)


def test_autocast_computes_products_in_half_and_sums_in_float32() -> None:
    torch.manual_seed(0)
    head, hidden = nn.Linear(64, 13, bias=False), torch.randn(4, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = token_loss(head, hidden, torch.arange(4), 13)
        expected = F.cross_entropy(head(hidden).float(), torch.arange(4), reduction="sum")
    assert result.total.dtype == torch.float32
    torch.testing.assert_close(result.total, expected)
    ours = torch.autograd.grad(result.total, [hidden, head.weight])
    for mine, theirs in zip(ours, torch.autograd.grad(expected, [hidden, head.weight]), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02)


def test_no_target_is_zero_with_a_gradient() -> None:
    head = nn.Linear(6, 13)
    result = token_loss(head, torch.zeros(0, 6), torch.zeros(0, dtype=torch.long), 13)
    assert (result.total.item(), int(result.count), result.mean.item()) == (0.0, 0, 0.0)
    result.total.backward()
    assert head.weight.grad is not None
    assert not head.weight.grad.any()


def test_half_precision_is_summed_in_float32() -> None:
    head = nn.Linear(6, 13).bfloat16()
    result = token_loss(head, torch.randn(4, 6).bfloat16(), torch.arange(4), 13)
    assert result.total.dtype == torch.float32
