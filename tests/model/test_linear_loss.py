"""The two ways through a linear head: rows by rows, and classes by blocks."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anymodal.model import linear_loss
from anymodal.model import loss as module
from anymodal.model.loss import token_loss


@pytest.mark.parametrize("part", [linear_loss._by_rows, linear_loss._by_classes])
@pytest.mark.parametrize("biased", [True, False])
def test_parts_add_to_gradients(monkeypatch: pytest.MonkeyPatch, part: Any, biased: bool) -> None:
    monkeypatch.setattr(linear_loss, "CPU_BLOCK", (1024, 40))  # 4 classes at a time
    torch.manual_seed(0)
    x, weight = (torch.randn(size, 6, dtype=torch.float64, requires_grad=True) for size in (10, 13))
    bias = torch.randn(13, dtype=torch.float64, requires_grad=True) if biased else None
    targets, learned = torch.randint(0, 13, (10,)), [x, weight, *([] if bias is None else [bias])]
    logits = F.linear(x, weight, bias)
    plain = F.cross_entropy(logits, targets, reduction="sum") + 0.1 * logits.logsumexp(-1).square().sum()
    plain.backward()
    gradients = [None if each is None else torch.full_like(each, 7.0) for each in (x, weight, bias)]
    with torch.no_grad():
        for first in (True, False):
            sums = part(x, weight, bias, targets, 0.1, gradients, first=first)
    expected = (plain, None, (logits.argmax(-1) == targets).sum(), logits.abs().max())
    for mine, theirs in zip(sums, expected, strict=True):
        assert theirs is None or mine.item() == pytest.approx(theirs.item(), rel=1e-12)
    for mine, each, times in zip((g for g in gradients if g is not None), learned, (1, 2, 2), strict=False):
        assert each.grad is not None
        torch.testing.assert_close(mine, times * each.grad, msg="rows have gradients of their own, weights add up")


@pytest.mark.parametrize("targets", [7, 64])
def test_half_precision_goes_by_classes_where_rows_are_many(monkeypatch: pytest.MonkeyPatch, targets: int) -> None:
    monkeypatch.setattr(module, "CHUNK_LOGITS", 2 * 7 * 257)
    monkeypatch.setattr(linear_loss, "CPU_BLOCK", (32, 32 * 50))
    torch.manual_seed(0)
    head, hidden = nn.Linear(48, 257), torch.randn(targets, 48, requires_grad=True)
    wanted = torch.randint(0, 257, (targets,))

    def gradients(z_loss: float, *, half: bool) -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = token_loss(head, hidden, wanted, 257, z_loss).mean
        assert loss.dtype == torch.float32
        return list(torch.autograd.grad(loss, [hidden, *head.parameters()]))

    for mine, theirs in zip(gradients(0.1, half=True), gradients(0.1, half=False), strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 0.01
    grown, full = (
        [a - b for a, b in zip(gradients(1e-3, half=half), gradients(0.0, half=half), strict=True)]
        for half in (True, False)
    )
    for mine, theirs in zip(grown, full, strict=True):
        share = float((mine * theirs).sum() / theirs.square().sum())
        assert share == pytest.approx(1, abs=0.15), "a small z-loss is not rounded away"
