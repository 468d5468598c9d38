"""The two ways through a linear head: rows by rows, and classes by blocks."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anymodal.model import linear_loss
from anymodal.model import loss as module
from anymodal.model.loss import token_loss


def by_rows(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, counts: tuple[int, ...], z_loss: float, size: int
) -> list[linear_loss.Sums]:
    return linear_loss.linear_losses(x, weight, bias, targets, counts, z_loss=z_loss, size=size)


def by_classes(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, counts: tuple[int, ...], z_loss: float, size: int
) -> list[linear_loss.Sums]:
    apply: Any = linear_loss.LossByClasses.apply
    columns = apply(x, weight, bias, targets, counts, z_loss, x.dtype)
    return list(zip(*(column.unbind() for column in columns), strict=True))


@pytest.mark.parametrize("way", [by_rows, by_classes])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("counts", [(100,), (63, 37), (0, 100), (100, 0), (40, 0, 60)])
def test_counts_of_targets_have_sums_of_their_own(
    monkeypatch: pytest.MonkeyPatch, way: Any, biased: bool, counts: tuple[int, ...]
) -> None:
    monkeypatch.setattr(linear_loss, "CPU_BLOCK", (32, 32 * 4))  # 4 classes of 32 rows at a time
    torch.manual_seed(0)
    x, weight = (torch.randn(size, 6, dtype=torch.float64, requires_grad=True) for size in (100, 13))
    bias = torch.randn(13, dtype=torch.float64, requires_grad=True) if biased else None
    targets, learned = torch.randint(0, 13, (100,)), [x, weight, *([] if bias is None else [bias])]
    found = way(x, weight, bias, targets, counts, 0.1, 7)
    if way is by_rows:
        assert [sums[0].requires_grad for sums in found] == [count > 0 for count in counts], "none add no zeros"
    logits = F.linear(x, weight, bias)
    plain = F.cross_entropy(logits, targets, reduction="none") + 0.1 * logits.logsumexp(-1).square()
    for (total, _, correct, max_logit), of_each, scores, wanted in zip(
        found, plain.split(counts), logits.split(counts), targets.split(counts), strict=True
    ):
        torch.testing.assert_close(total, of_each.sum(), check_dtype=False)
        assert int(correct) == int((scores.argmax(-1) == wanted).sum())
        if len(wanted):
            torch.testing.assert_close(max_logit, scores.abs().max())
    ours = torch.autograd.grad(sum((2 + i) * sums[0] for i, sums in enumerate(found)), learned)
    theirs = torch.autograd.grad(sum((2 + i) * each.sum() for i, each in enumerate(plain.split(counts))), learned)
    torch.testing.assert_close(ours, theirs)


def test_by_classes_only_what_learns_gets_a_gradient() -> None:
    x, weight = torch.randn(8, 6, requires_grad=True), torch.randn(13, 6)
    (sums,) = by_classes(x, weight, None, torch.arange(8), (8,), 0.0, 0)
    (gradient,) = torch.autograd.grad(sums[0], [x])
    torch.testing.assert_close(
        gradient, torch.autograd.grad(F.cross_entropy(x @ weight.T, torch.arange(8), reduction="sum"), [x])[0]
    )


def test_without_gradients_there_is_one_product() -> None:
    head, hidden, products = nn.Linear(6, 13, bias=False), torch.randn(4, 6), list[str]()

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            products.extend(name for name in [func.__name__.partition(".")[0]] if name in ("mm", "addmm"))
            return func(*args, **(kwargs or {}))

    for learns in (False, True):
        products.clear()
        with torch.set_grad_enabled(learns), Products():  # type: ignore[no-untyped-call]
            token_loss(head, hidden, torch.arange(4), 13)
        assert len(products) == 1 + learns, "of the logits, and of the gradient of the weight"


@pytest.mark.parametrize("targets", [7, 64])
def test_half_precision_goes_by_classes_where_rows_are_many(monkeypatch: pytest.MonkeyPatch, targets: int) -> None:
    monkeypatch.setattr(module, "CHUNK_LOGITS", 2 * 7 * 257)
    monkeypatch.setattr(linear_loss, "CPU_BLOCK", (32, 32 * 50))
    torch.manual_seed(0)
    head, hidden = nn.Linear(48, 257), torch.randn(targets, 48, requires_grad=True)
    wanted = torch.randint(0, 257, (targets,))
    forward, by_blocks = linear_loss.LossByClasses.forward, list[int]()

    def counted(*given: Any) -> linear_loss.Sums:
        by_blocks.append(targets)
        return forward(*given)

    monkeypatch.setattr(linear_loss.LossByClasses, "forward", staticmethod(counted))

    def gradients(z_loss: float, *, half: bool) -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = token_loss(head, hidden, wanted, 257, z_loss).mean
        assert loss.dtype == torch.float32
        return list(torch.autograd.grad(loss, [hidden, *head.parameters()]))

    for mine, theirs in zip(gradients(0.1, half=True), gradients(0.1, half=False), strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 0.01
    assert by_blocks == [64] * (targets == 64), "in half precision, and many at that"
    grown, full = (
        [a - b for a, b in zip(gradients(1e-3, half=half), gradients(0.0, half=half), strict=True)]
        for half in (True, False)
    )
    for mine, theirs in zip(grown, full, strict=True):
        share = float((mine * theirs).sum() / theirs.square().sum())
        assert share == pytest.approx(1, abs=0.15), "a small z-loss is not rounded away"
