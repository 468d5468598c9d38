"""How much of a picture survives the image tokenizer, and how much of its codebook is used."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from anymodal.scoring.features import features, is_installed
from anymodal.scoring.report import Score
from anymodal.tokens.image import ImageTokenizer

BATCH = 32
PEAK = 2.0  # from -1 to 1
WINDOW, SIGMA = 11, 1.5
STABLE = (0.01, 0.03)  # K1 and K2 of the paper


@dataclass(frozen=True)
class Fidelity:
    """Hold what an image tokenizer keeps of pictures.

    `psnr` is in decibel, `ssim` at most 1, both means over pictures; `feature_distance` is None where the package with
    the features is not installed; `used` is the share of codes that came up, `perplexity` how many codes, used equally
    often, would carry as much.

    >>> Fidelity(2, psnr=26.0, ssim=0.9, feature_distance=None, used=0.5, perplexity=12.0).scores()[0].describe()
    'PSNR                                                 26 dB of 2'
    """

    count: int
    psnr: float
    ssim: float
    feature_distance: float | None
    used: float
    perplexity: float

    def scores(self) -> list[Score]:
        """Return all of it as scores."""
        found = [Score("PSNR", self.psnr, self.count, unit="dB"), Score("SSIM", self.ssim, self.count, unit="")]
        if self.feature_distance is not None:
            found.append(Score("feature Fréchet distance", self.feature_distance, self.count, unit=""))
        found.append(Score("codes used", self.used, self.count))
        return [*found, Score("perplexity of the codes", self.perplexity, self.count, unit="")]


@torch.no_grad()
def measure(tokenizer: ImageTokenizer, pixels: Float[Tensor, "b 3 h w"]) -> Fidelity:
    """Pass pictures with pixels in [-1, 1] through an image tokenizer, some at a time, and measure what comes out.

    Raises:
        ValueError: there is no picture, or the tokenizer does not divide its sides.
    """
    if not len(pixels):
        raise ValueError("a measure of an image tokenizer needs pictures, got none.")
    where = next(tokenizer.parameters()).device
    codes = [tokenizer.encode(part.to(where)) for part in pixels.split(BATCH)]
    again = torch.cat([tokenizer.decode(part).cpu() for part in codes])
    real = pixels.cpu().float()
    used, perplexity = code_usage(torch.cat(codes).cpu(), tokenizer.codebook_size)
    return Fidelity(
        count=len(real),
        psnr=float(psnr(real, again).mean()),
        ssim=float(ssim(real, again).mean()),
        feature_distance=frechet_distance(features(real), features(again)) if is_installed() else None,
        used=used,
        perplexity=perplexity,
    )


def psnr(real: Float[Tensor, "b 3 h w"], again: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Return the peak signal-to-noise ratio of each picture in decibel; pixels are in [-1, 1]."""
    error = (real.double() - again.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(PEAK**2 / error.clamp(min=1e-10))


def ssim(real: Float[Tensor, "b 3 h w"], again: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Return the structural similarity of each picture; pixels are in [-1, 1], the score at most 1.

    Wang et al. 2004, equation 13, with the paper's Gaussian window where it lies within the picture; the mean over
    places and colour channels.

    Raises:
        ValueError: the pictures are smaller than the window.
    """
    if min(real.shape[2:]) < WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {WINDOW} pixels a side, got {tuple(real.shape[2:])}.")
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=real.device) - WINDOW // 2
    line = torch.exp(-offsets.square() / (2 * SIGMA**2))
    line = line / line.sum()

    def blurred(x: Tensor) -> Tensor:
        planes = x.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(planes, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))

    a, b = ((x.double() + 1) / 2 for x in (real, again))  # it depends on where black is
    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a.square(), blurred(b * b) - mean_b.square()
    covariance = blurred(a * b) - mean_a * mean_b
    c1, c2 = (k**2 for k in STABLE)
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    likeness = likeness / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))
    return likeness.view(len(real), -1).mean(dim=1)


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Return the squared Fréchet distance of the Gaussians that fit two sets of features (arXiv:1706.08500, eq. 6).

    The trace of the root of both covariances' product is the sum of the singular values of the product of the centred
    features: exact also for fewer features than dimensions. Compare distances of equally many pictures alone.

    Raises:
        ValueError: a set has fewer than two features.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a Fréchet distance needs at least two pictures on each side, got {len(a)} and {len(b)}.")
    a, b = a.double(), b.double()
    means = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    spread_a, spread_b = ((x - x.mean(dim=0)) / (len(x) - 1) ** 0.5 for x in (a, b))
    shared = torch.linalg.svdvals(spread_a @ spread_b.mT).sum()
    return max(0.0, float(means + spread_a.square().sum() + spread_b.square().sum() - 2 * shared))


def code_usage(codes: Int[Tensor, "*shape"], codebook_size: int) -> tuple[float, float]:
    """Return the share of a codebook that comes up in codes, and their perplexity in [1, codebook_size]."""
    counts = torch.bincount(codes.flatten().long(), minlength=codebook_size).double()
    share = counts / counts.sum().clamp(min=1)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return float((counts > 0).double().mean()), float(entropy.exp())
