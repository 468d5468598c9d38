from typing import Any

import pytest
import torch

from anymodal.tokens.image_config import QuantizerConfig
from anymodal.tokens.quantizer import LearnedCodebook, Quantizer, flatten_grid

CONFIGS = [
    QuantizerConfig(kind="vq", codebook_size=16, codebook_dim=4),
    QuantizerConfig(kind="l2-vq", codebook_size=16, codebook_dim=4),
    QuantizerConfig(kind="fsq", codebook_size=20, levels=(5, 4)),
    QuantizerConfig(kind="lfq", codebook_size=16, codebook_dim=4),
    QuantizerConfig(kind="simvq", codebook_size=16, codebook_dim=4),
    QuantizerConfig(kind="vq", codebook_size=16, codebook_dim=4, codebook_update="gradient"),
    QuantizerConfig(kind="l2-vq", codebook_size=16, codebook_dim=4, codebook_update="gradient"),
]


def make(config: QuantizerConfig) -> Quantizer:
    torch.manual_seed(0)
    quantizer = Quantizer(config, 6)
    if isinstance(quantizer.codebook, LearnedCodebook):
        torch.nn.init.normal_(quantizer.codebook.embedding)
    return quantizer.eval()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.kind} {config.codebook_update}")
def test_codes_look_up_what_was_quantized(config: QuantizerConfig) -> None:
    quantizer = make(config)
    result = quantizer(torch.randn(2, 50, 6) * 2)
    assert (result.codes.shape, result.codes.dtype) == ((2, 50), torch.int64)
    assert len(result.codes.unique()) > 3
    torch.testing.assert_close(quantizer.look_up(result.codes), result.latents, atol=1e-5, rtol=1e-5)
    assert result.loss.shape == ()


def test_the_nearest_vector_is_taken() -> None:
    for config, normalised in zip(
        (CONFIGS[i] for i in (0, 1, 4, 5, 6)), (False, True, False, False, True), strict=True
    ):
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


@pytest.mark.parametrize("kind", ["vq", "l2-vq"])
def test_a_learned_codebook_gives_the_codes_of_vector_quantize_pytorch(kind: Any) -> None:
    torch.manual_seed(0)
    averaged = Quantizer(QuantizerConfig(kind=kind, codebook_size=512, codebook_dim=4), 6).eval()
    config = QuantizerConfig(kind=kind, codebook_size=512, codebook_dim=4, codebook_update="gradient")
    learned = Quantizer(config, 6).eval()
    learned.project_in, learned.project_out = averaged.project_in, averaged.project_out
    table = torch.randn(512, 4)
    learned.codebook.embedding.data = table
    theirs: Any = averaged.codebook
    theirs.codebook = table if kind == "vq" else table / table.norm(dim=-1, keepdim=True)
    latents = torch.randn(2, 400, 6)
    ours, expected = learned(latents), averaged(latents)
    assert torch.equal(ours.codes, expected.codes)
    assert len(ours.codes.unique()) > 100
    torch.testing.assert_close(ours.latents, expected.latents, atol=1e-6, rtol=0)


def test_a_learned_codebook_moves_to_its_vectors() -> None:
    """Equation 3 of arXiv:1711.00937 by hand: one vector, the nearer of two codes."""
    codebook = LearnedCodebook(2, 2, commitment_weight=0.5)
    codebook.embedding.data = torch.tensor([[1.0, 0.0], [5.0, 5.0]])
    vectors = torch.tensor([[[0.0, 2.0]]], requires_grad=True)
    quantized, codes, loss = codebook(vectors)
    assert (codes.tolist(), quantized.tolist()) == ([[0]], [[[1.0, 0.0]]])
    assert loss.item() == 1.5 * (1 + 4) / 2
    (loss + 3 * quantized.sum()).backward()
    assert codebook.embedding.grad is not None
    assert vectors.grad is not None
    assert codebook.embedding.grad.tolist() == [[1.0, -2.0], [0.0, 0.0]]
    assert vectors.grad.tolist() == [[[3 - 0.5, 3 + 1.0]]]


def test_without_projection_latents_are_compared_as_they_are() -> None:
    quantizer = Quantizer(CONFIGS[5], 4, project=False).eval()
    assert quantizer.state_dict().keys() == {"codebook.embedding"}
    torch.nn.init.normal_(quantizer.codebook.embedding)  # type: ignore[arg-type]
    latents = torch.randn(1, 30, 4)
    result = quantizer(latents)
    table = quantizer.vectors(torch.arange(16)[None])[0]
    assert torch.equal(result.codes[0], torch.cdist(latents[0], table).argmin(-1))
    assert torch.equal(result.latents, quantizer.look_up(result.codes))


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
        ({"kind": "simvq", "codebook_update": "gradient"}, "codebook_update belongs to vq and l2-vq, got kind 'simvq'"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizerConfig(**options)
