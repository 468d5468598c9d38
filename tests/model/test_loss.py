import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anymodal.model import loss as module
from anymodal.model.loss import token_loss


@pytest.mark.parametrize("chunk_logits", [2**24, 40])
def test_equals_cross_entropy_with_its_gradients(monkeypatch: pytest.MonkeyPatch, chunk_logits: int) -> None:
    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk_logits)
    torch.manual_seed(0)
    head = nn.Linear(6, 13).double()
    hidden = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 13, (10,))
    result = token_loss(head, hidden, targets, 13)
    logits = head(hidden)
    torch.testing.assert_close(result.total, F.cross_entropy(logits, targets, reduction="sum"))
    torch.testing.assert_close(result.z_total, logits.logsumexp(-1).square().sum())
    torch.testing.assert_close(result.mean, F.cross_entropy(logits, targets))
    torch.testing.assert_close(result.max_logit, logits.abs().max())
    assert int(result.correct) == int((logits.argmax(-1) == targets).sum())
    assert int(result.count) == 10
    ours = torch.autograd.grad(result.total + 0.1 * result.z_total, [hidden, *head.parameters()])
    plain = F.cross_entropy(logits, targets, reduction="sum") + 0.1 * logits.logsumexp(-1).square().sum()
    for mine, theirs in zip(ours, torch.autograd.grad(plain, [hidden, *head.parameters()]), strict=True):
        torch.testing.assert_close(mine, theirs)


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
