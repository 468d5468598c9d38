"""Gradients that are written out are those that autograd finds."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from anymodal.model.elementwise import Apply, _RMSNorm, rms_normalised, rotary_table, rotate


def test_a_rotation_turns_its_gradient_back() -> None:
    angles = rotary_table(torch.tensor([[0, 3, 5]]), 8, 100.0)[:, :, :, None]
    x = torch.randn(1, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, angles), (x,))
    with torch.no_grad():
        torch.testing.assert_close(rotate(x, angles), rotate(x.detach().requires_grad_(), angles), rtol=0, atol=0)


def test_rms_norm_has_the_gradient_of_autograd() -> None:
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: cast(Apply, _RMSNorm.apply)(x, w, 1e-5, torch.float64), (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_under_autocast_is_torchs_rounded(dtype: torch.dtype) -> None:
    norm = nn.RMSNorm(16, eps=1e-6)
    nn.init.normal_(norm.weight)
    x = torch.randn(4, 5, 16).to(dtype)
    upstream = torch.randn(4, 5, 16).bfloat16()

    def gradients(autocast: bool) -> tuple[Tensor, Tensor, Tensor]:
        norm.zero_grad()
        read = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = rms_normalised(norm, read)
        (out if autocast else out.bfloat16()).backward(upstream)
        assert read.grad is not None
        assert norm.weight.grad is not None
        return out, read.grad, norm.weight.grad

    found, expected = gradients(True), gradients(False)
    assert found[0].dtype == torch.bfloat16
    assert expected[0].dtype == dtype
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.float(), other.float(), rtol=1e-2, atol=1e-2)
