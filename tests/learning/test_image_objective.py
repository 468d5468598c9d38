import math
from typing import Any

import pytest
import torch

from anymodal.learning.config import ImageObjectiveConfig, OptimizerConfig, RunConfig
from anymodal.learning.image_objective import Anchors, ImageTokenizerObjective, PatchDiscriminator, psnr
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig

PIXELS = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


def make(features: Any = None, **losses: Any) -> ImageTokenizerObjective:
    torch.manual_seed(0)
    quantizer = QuantizerConfig(kind="l2-vq", codebook_size=16, codebook_dim=4)
    tokenizer = ImageTokenizer(
        ImageTokenizerConfig(channels=(8,), norm_groups=4, blocks=1, latent_channels=8, quantizer=quantizer)
    )
    objective = ImageTokenizerObjective(
        tokenizer,
        losses=ImageObjectiveConfig(**losses),
        optimizer=OptimizerConfig(),
        run=RunConfig(log_every=1),
        features=features,
    )
    objective.logged = {}  # type: ignore[assignment]
    objective.log = lambda name, value, **_: objective.logged.update({name: value})  # type: ignore[method-assign, union-attr, operator]
    return objective


def test_loss_is_the_sum_of_its_terms() -> None:
    objective = make(features=lambda pixels: [pixels * 2, pixels[:, :2]], perceptual_weight=0.5, l2_weight=3.0)
    objective.tokenizer.eval()
    result = objective.tokenizer(PIXELS)
    quality = psnr(PIXELS, result.pixels.detach()).mean().item()
    difference = PIXELS - result.pixels
    expected = difference.abs().mean() + 3 * difference.square().mean() + result.codebook_loss
    for real, drawn in ((PIXELS, result.pixels), (PIXELS[:, :2], result.pixels[:, :2])):
        real, drawn = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-12) for x in (real, drawn))
        expected = expected + 0.25 * (real - drawn).square().sum(1).mean()
    torch.testing.assert_close(objective.training_step(PIXELS, 0), expected)
    logged: Any = objective.logged
    assert 1 <= float(logged["codebook_perplexity"]) <= 16
    assert 0 < float(logged["codebook_used"]) <= 1
    objective.validation_step(PIXELS, 0)
    assert math.isclose(float(logged["held_out_psnr"]), quality, rel_tol=1e-4)


def test_psnr_is_that_of_the_definition() -> None:
    real, drawn = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2)
    assert math.isclose(float(psnr(real, drawn)), 20 * math.log10(2 / 0.2), rel_tol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_both_sides_learn_by_the_optimizer_that_is_asked_for(name: Any) -> None:
    config = OptimizerConfig(name=name, learning_rate=0.5, weight_decay=0.25, betas=(0.7, 0.8))
    alone, objective = make(), make(adversarial_weight=0.5)
    alone.optimizer_config = objective.optimizer_config = config
    wanted: Any = alone.configure_optimizers()
    (generator, critic), _ = objective.configure_optimizers()
    assert type(generator) is type(critic) is type(wanted["optimizer"])
    assert shape_of(generator) == shape_of(wanted["optimizer"])
    for each in (generator, critic):
        assert {group["weight_decay"] for group in each.param_groups} == {0.25, 0.0}
        assert {group["betas"] for group in each.param_groups} == {(0.7, 0.8)}
    decided = sum(each.numel() for group in critic.param_groups for each in group["params"])
    assert objective.discriminator is not None
    assert decided == sum(each.numel() for each in objective.discriminator.parameters())


def shape_of(optimizer: Any) -> list[tuple[float, int]]:
    return [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]


def test_the_discriminator_scores_patches() -> None:
    discriminator = PatchDiscriminator(16)
    scores = discriminator(PIXELS)
    assert scores.shape == (2, 1, 7, 7)
    assert make(adversarial_weight=0.5).automatic_optimization is False
    assert make().automatic_optimization is True


def test_what_holds_a_discriminator_back_is_that_of_the_formula() -> None:
    anchors, generator = Anchors(), torch.Generator().manual_seed(0)
    of_real = of_drawn = 0.0
    for _ in range(3):
        real, drawn = torch.randn(2, 2, 1, 3, 3, generator=generator).unbind()
        expected = sum(max(0, r - of_drawn) ** 2 for r in real.flatten().tolist()) / real.numel()
        expected += sum(max(0, of_real - d) ** 2 for d in drawn.flatten().tolist()) / drawn.numel()
        assert math.isclose(float(anchors.penalty(real, drawn)), expected, rel_tol=1e-5)
        anchors.follow(real, drawn)
        of_real = 0.99 * of_real + 0.01 * float(real.mean())
        of_drawn = 0.99 * of_drawn + 0.01 * float(drawn.mean())
        assert anchors.averages.tolist() == pytest.approx([of_real, of_drawn])
    before = anchors.averages.clone()
    anchors.follow(torch.full((2, 3), torch.nan), torch.zeros(2, 3))
    assert anchors.averages.equal(before), "a step that is not finite is left out"
    with pytest.raises(ValueError, match="lecam_weight is of the discriminator, got 0.3 without one"):
        ImageObjectiveConfig(lecam_weight=0.3)


def test_a_perceptual_term_needs_features() -> None:
    with pytest.raises(ValueError, match="perceptual_weight needs features: install"):
        make(perceptual_weight=1.0)
