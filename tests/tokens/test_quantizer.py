from typing import Any

import pytest
import torch

from anymodal.tokens.image_config import QuantizerConfig
from anymodal.tokens.quantizer import Quantizer, flatten_grid

CONFIGS = [
    QuantizerConfig(kind="vq", codebook_size=16, codebook_dim=4),
    QuantizerConfig(kind="l2-vq", codebook_size=16, codebook_dim=4),
    QuantizerConfig(kind="fsq", codebook_size=20, levels=(5, 4)),
    QuantizerConfig(kind="lfq", codebook_size=16, codebook_dim=4),
    QuantizerConfig(kind="simvq", codebook_size=16, codebook_dim=4),
]


def make(config: QuantizerConfig) -> Quantizer:
    torch.manual_seed(0)
    return Quantizer(config, 6).eval()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_codes_look_up_what_was_quantized(config: QuantizerConfig) -> None:
    quantizer = make(config)
    result = quantizer(torch.randn(2, 50, 6) * 2)
    assert (result.codes.shape, result.codes.dtype) == ((2, 50), torch.int64)
    assert len(result.codes.unique()) > 3
    torch.testing.assert_close(quantizer.look_up(result.codes), result.latents, atol=1e-5, rtol=1e-5)
    assert result.loss.shape == ()


def test_the_nearest_vector_is_taken() -> None:
    for config, normalised in ((CONFIGS[0], False), (CONFIGS[1], True), (CONFIGS[4], False)):
        quantizer = make(config)
        latents = torch.randn(1, 40, 6)
        narrow, table = quantizer.project_in(latents)[0], quantizer.vectors(torch.arange(16)[None])[0]
        if normalised:
            narrow = narrow / narrow.norm(dim=-1, keepdim=True)
            torch.testing.assert_close(table.norm(dim=-1), torch.ones(16))
        assert torch.equal(quantizer(latents).codes[0], torch.cdist(narrow, table).argmin(-1)), config.kind


def test_fsq_rounds_bounded_latents() -> None:
    quantizer = make(CONFIGS[2])
    vectors = quantizer.vectors(torch.arange(20)[None])[0]
    assert sorted({round(float(x), 3) for x in vectors[:, 0]}) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert len(vectors.unique(dim=0)) == 20


def test_gradients_pass_straight_through() -> None:
    latents = torch.randn(1, 3, 6, requires_grad=True)
    make(CONFIGS[2])(latents).latents.sum().backward()
    assert latents.grad is not None
    assert bool(latents.grad.any())


def test_a_grid_is_read_row_by_row() -> None:
    grid = torch.arange(12.0).view(1, 2, 2, 3)
    assert flatten_grid(grid)[0].tolist() == [[i, i + 6] for i in range(6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "fsq", "codebook_size": 64, "levels": (8, 5)},
            r"levels \[8, 5\] \(product 40\) and codebook_size 64",
        ),
        ({"kind": "vq", "levels": (8,)}, "levels belong to the fsq quantizer"),
        ({"kind": "lfq", "codebook_size": 64, "codebook_dim": 5}, r"2 \*\* codebook_dim codes"),
        ({"codebook_size": 1}, "at least 2"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizerConfig(**options)
