"""The kernel runs on GPUs alone; its twin here takes the same arguments and attends to one document after another."""

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anymodal.model import varlen
from anymodal.model.config import TransformerConfig
from anymodal.model.transformer import Segments, Transformer

KERNEL = varlen.find_kernel()
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, -1, -1], [2, 2, 2, 2, 3, 4, -1]])
POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 0, 0, 0]])


class Twin:
    """Takes what torch's kernel takes, by its names, and records it."""

    def __init__(self) -> None:
        self.asked = list[dict[str, Any]]()

    def __call__(self, *given: Any, **options: Any) -> Tensor:
        assert KERNEL is not None
        asked = inspect.signature(KERNEL).bind(*given, **options).arguments
        self.asked.append(asked)
        q, k, v = (asked[name].transpose(0, 1) for name in ("query", "key", "value"))
        edges = asked["cu_seq_q"].tolist()
        spans = [slice(*pair) for pair in zip(edges[:-1], edges[1:], strict=True)]
        grouped = asked["enable_gqa"]
        mixed = [
            F.scaled_dot_product_attention(q[:, span], k[:, span], v[:, span], is_causal=True, enable_gqa=grouped)
            for span in spans
        ]
        return torch.cat(mixed, dim=1).transpose(0, 1)


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> Twin:
    if KERNEL is None:
        pytest.skip("this torch has no kernel for documents of any length")
    made = Twin()
    monkeypatch.setattr(varlen, "takes", lambda *_: True)
    monkeypatch.setattr(varlen, "find_kernel", lambda: made)
    return made


def tiny(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    shape = {"dim": 32, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "hidden_dim": 48, **changes}
    return Transformer(TransformerConfig(**shape)).double()


def gradients(model: Transformer, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return what the documents become, without padding, and the gradients of all weights."""
    model.zero_grad()
    found = model(x, POSITIONS, Segments.of(DOCUMENTS))[DOCUMENTS >= 0]
    found.square().sum().backward()
    return found.detach(), [each.grad.clone() for each in model.parameters() if each.grad is not None]


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_one_call_attends_as_groups_do(kv_heads: int, monkeypatch: pytest.MonkeyPatch, twin: Twin) -> None:
    model, x = tiny(num_kv_heads=kv_heads), torch.randn(2, 7, 32, dtype=torch.float64)
    at_once = gradients(model, x)
    assert len(twin.asked) == 2
    asked = twin.asked[0]
    assert asked["cu_seq_q"].tolist() == asked["cu_seq_k"].tolist() == [0, 3, 5, 7, 11, 12, 13, 14]
    assert asked["cu_seq_q"].dtype == torch.int32
    assert (asked["max_q"], asked["max_k"], asked["window_size"]) == (4, 4, (-1, 0))
    assert asked["enable_gqa"] == (kv_heads == 2)
    monkeypatch.setattr(varlen, "takes", lambda *_: False)
    grouped = gradients(model, x)
    assert len(twin.asked) == 2
    torch.testing.assert_close(at_once, grouped, atol=1e-11, rtol=1e-11)


def test_autocast_and_dropout_are_heeded(twin: Twin) -> None:
    model, x = tiny(attention_dropout=0.5).float(), torch.randn(2, 7, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.eval()(x, POSITIONS, Segments.of(DOCUMENTS))
    assert {each["query"].dtype for each in twin.asked} == {torch.bfloat16}
    seen = len(twin.asked)
    model.train()(x, POSITIONS, Segments.of(DOCUMENTS))
    assert len(twin.asked) == seen, "the kernel knows no dropout"


def test_a_kernel_takes_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert varlen.takes(cuda, torch.bfloat16, 64) == (KERNEL is not None)
    assert not varlen.takes(torch.device("cpu"), torch.bfloat16, 64)
    assert not varlen.takes(cuda, torch.float32, 64)
    assert not varlen.takes(cuda, torch.bfloat16, 12)
    assert not varlen.takes(cuda, torch.bfloat16, 512)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not varlen.takes(cuda, torch.bfloat16, 64)
