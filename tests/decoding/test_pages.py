import mmap

import pytest
import torch

from anymodal.decoding.pages import LINE, move_to_large_pages


def test_tensors_lie_one_behind_the_other_and_hold_what_they_held() -> None:
    tensors = [torch.randn(3, 7), torch.randn(5).bfloat16(), torch.randint(-9, 9, (65,), dtype=torch.int8)]
    tensors += [torch.nn.Parameter(torch.randn(2, 2)[:, :1], requires_grad=False), torch.empty(0)]
    before = [tensor.clone() for tensor in tensors]
    move_to_large_pages(tensors)
    assert all(map(torch.equal, tensors, before))
    assert [tensor.dtype for tensor in tensors] == [tensor.dtype for tensor in before]
    assert all(tensor.is_contiguous() for tensor in tensors)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        places = [tensor.data_ptr() for tensor in tensors[:4]]
        assert [place - places[0] for place in places] == [0, 2 * LINE, 3 * LINE, 5 * LINE]
    tensors[0].fill_(1)
    assert torch.equal(tensors[1], before[1])


def test_elsewhere_tensors_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    tensor = torch.randn(3)
    place = tensor.data_ptr()
    move_to_large_pages([tensor])
    assert tensor.data_ptr() == place
    move_to_large_pages([])
