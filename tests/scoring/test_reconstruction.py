import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from anymodal.data.canvas import Placed, Scene, render
from anymodal.data.pictures import to_pixels
from anymodal.scoring.features import features
from anymodal.scoring.reconstruction import code_usage, frechet_distance, measure, psnr, ssim
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig

Floats = NDArray[np.float64]


def pixels(*names: str, side: int = 64) -> Tensor:
    scenes = [Scene("one", "white", (Placed(name, "centre"),)) for name in names]
    return torch.stack([to_pixels(render(scene), side, side) for scene in scenes])


def ssim_of_wang(a: Floats, b: Floats) -> float:
    """Return the mean SSIM of one plane, dynamic range 255: a loop over windows, section III of Wang et al. 2004."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            x, y = (plane[top : top + 11, left : left + 11] for plane in (a, b))
            mu_x, mu_y = (window * x).sum(), (window * y).sum()
            var_x, var_y = (window * (x - mu_x) ** 2).sum(), (window * (y - mu_y) ** 2).sum()
            both = (window * (x - mu_x) * (y - mu_y)).sum()
            likeness = (2 * mu_x * mu_y + c1) * (2 * both + c2)
            found.append(likeness / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2)))
    return float(np.mean(found))


def frechet_by_eigenvalues(a: Floats, b: Floats) -> float:
    """Return equation 6 of arXiv:1706.08500 by the root of sqrt(C_a) C_b sqrt(C_a)."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors @ np.diag(np.sqrt(np.clip(values, 0, None))) @ vectors.T
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * shared)


def test_psnr_is_that_of_the_definition() -> None:
    real = torch.zeros(2, 3, 4, 4)
    again = real + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)
    torch.testing.assert_close(psnr(real, again), torch.tensor([20.0, 40.0]).double(), rtol=1e-6, atol=1e-6)


def test_ssim_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    real = pixels("dog", "rose", side=24)
    again = (real + 0.2 * torch.randn_like(real)).clamp(-1, 1)
    found = ssim(real, again)
    for picture, other, score in zip(real, again, found, strict=True):
        planes = [(each.double().numpy() + 1) * 127.5 for each in (picture, other)]
        wanted = np.mean([ssim_of_wang(planes[0][c], planes[1][c]) for c in range(3)])
        assert math.isclose(float(score), wanted, abs_tol=1e-9)
    assert torch.allclose(ssim(real, real), torch.ones(2).double())
    with pytest.raises(ValueError, match="at least 11 pixels a side"):
        ssim(real[..., :8], real[..., :8])


@pytest.mark.parametrize("counts", [(40, 60), (5, 4)], ids=["more than dimensions", "fewer than dimensions"])
def test_frechet_distance_is_that_of_the_formula(counts: tuple[int, int]) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(counts[0], 8), 2 + torch.randn(counts[1], 8) @ torch.randn(8, 8)
    wanted = frechet_by_eigenvalues(a.double().numpy(), b.double().numpy())
    assert math.isclose(frechet_distance(a, b), wanted, rel_tol=1e-6)
    assert math.isclose(frechet_distance(b, a), wanted, rel_tol=1e-6)
    assert frechet_distance(a, a) < 1e-9


def test_frechet_distance_of_diagonal_gaussians() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).repeat(64, 1)  # covariance n / (n - 1)
    means, scales = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([2.0, 1.0, 0.5])
    wanted = (means.square() + (scales - 1).square() * 512 / 511).sum()
    assert math.isclose(frechet_distance(corners, corners * scales + means), float(wanted), rel_tol=1e-6)
    with pytest.raises(ValueError, match="at least two pictures"):
        frechet_distance(corners[:1], corners)


def test_code_usage_counts() -> None:
    used, perplexity = code_usage(torch.tensor([[0, 1], [1, 0]]), 4)
    assert used == 0.5
    assert math.isclose(perplexity, 2)
    used, perplexity = code_usage(torch.tensor([0, 0, 0, 1]), 4)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert math.isclose(perplexity, math.exp(entropy))


def test_a_tokenizer_is_measured_whole() -> None:
    torch.manual_seed(0)
    quantizer = QuantizerConfig(kind="fsq", codebook_size=16, levels=(4, 4))
    config = ImageTokenizerConfig(channels=(8, 8), norm_groups=4, blocks=1, latent_channels=8, quantizer=quantizer)
    tokenizer, real = ImageTokenizer(config).eval(), pixels("dog", "cat", "rose", side=32)
    found = measure(tokenizer, real)
    again = tokenizer.decode(tokenizer.encode(real))
    assert found.count == 3
    assert math.isclose(found.psnr, float((10 * torch.log10(4 / (real - again).square().mean((1, 2, 3)))).mean()),
                        rel_tol=1e-5)  # fmt: skip
    assert found.feature_distance is not None
    assert math.isclose(found.feature_distance, frechet_distance(features(real), features(again)), rel_tol=1e-6)
    assert 1 / 16 <= found.used <= 1
    assert 1 <= found.perplexity <= 16
    assert [score.unit for score in found.scores()] == ["dB", "", "", "%", ""]
    with pytest.raises(ValueError, match="needs pictures, got none"):
        measure(tokenizer, real[:0])
    with pytest.raises(ValueError, match="multiples of"):
        measure(tokenizer, real[..., :31])
