"""The objective of image tokenizers: reconstruction, codebook, and optionally perceptual and adversarial terms."""

import logging
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from anymodal.learning.codebook import CodebookUsage
from anymodal.learning.config import ImageObjectiveConfig, OptimizerConfig, RunConfig
from anymodal.learning.distributed import is_first, sum_over_ranks
from anymodal.learning.guard import clip_or_skip
from anymodal.learning.objective import Objective
from anymodal.learning.optimizer import Schedule, build_optimizer, rate_at, trainable
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.quantizer import flatten_grid

log = logging.getLogger(__name__)

SETTLED_STEPS = 400  # in its first hundreds of steps a codebook still spreads out
REVIVE_EVERY = 100
ANCHOR_DECAY = 0.99  # as in the code of LeCAM's authors


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


class Anchors(nn.Module):
    """What a discriminator said of real and of drawn pictures so far, from which it is not to move far (LeCAM).

    Moving averages (R_LC of arXiv:2104.03310) that start at zero and are part of a checkpoint. Scores of real pictures
    below the average of drawn ones cost nothing, nor the other way round, as in the code of its authors.

    >>> Anchors().penalty(torch.tensor([3.0, -1.0]), torch.tensor([-2.0, 1.0]))
    tensor(6.5000)
    """

    averages: Tensor

    def __init__(self) -> None:
        """Begin at zero."""
        super().__init__()
        self.register_buffer("averages", torch.zeros(2))

    def penalty(self, real: Float[Tensor, "*shape"], drawn: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
        """Return the penalty on scores of real and drawn patches."""
        of_real, of_drawn = self.averages.unbind()
        return F.relu(real - of_drawn).square().mean() + F.relu(of_real - drawn).square().mean()

    @torch.no_grad()
    def follow(self, real: Float[Tensor, "*shape"], drawn: Float[Tensor, "*shape"]) -> None:
        """Move towards the scores of a step, over all processes; scores that are no numbers move nothing."""
        means = sum_over_ranks(torch.stack([real.mean(), drawn.mean(), torch.ones_like(real.mean())]).float())
        means = means[:2] / means[2]
        moved = self.averages.lerp(means, 1 - ANCHOR_DECAY)
        self.averages.copy_(torch.where(torch.isfinite(means).all(), moved, self.averages))


class ImageTokenizerObjective(Objective):
    """VQGAN's losses (arXiv:2012.09841); `features` maps pixels to a list of feature maps for the perceptual term."""

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
        self.features, self.learns_codes = features, losses.trains == "all"
        if not self.learns_codes:
            tokenizer.keep_codes()
        if losses.perceptual_weight and features is None:
            raise ValueError("perceptual_weight needs features: install the extra with `pip install anymodal[test]`.")
        self.discriminator = PatchDiscriminator() if losses.adversarial_weight else None
        self.anchors = Anchors() if losses.lecam_weight else None
        self.automatic_optimization = self.discriminator is None
        self.usage, self.collapsed = CodebookUsage(tokenizer.codebook_size), False
        self.codebook_before: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        """Join the codebooks of all processes, which know each other by now."""
        if self.trainer.world_size > 1:
            self.tokenizer.quantizer.learn_together()

    def configure_optimizers(self) -> Any:
        """Build one optimizer, and a second one like it for the discriminator where there is one."""
        if self.discriminator is None:
            return super().configure_optimizers()
        config = self.optimizer_config
        generator, critic = (build_optimizer(trainable(each), config) for each in (self.tokenizer, self.discriminator))

        def rate(_: int) -> float:
            return rate_at(max(self.global_step, self.losses.adversarial_start), config, self.run.steps)

        schedules = [
            Schedule(generator, lambda step: rate_at(step, config, self.run.steps)),
            Schedule(critic, rate),  # it counts fewer steps
        ]
        result: OptimizerLRScheduler = ([generator, critic], schedules)
        return result

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Begin anew what a checkpoint does not hold: those of earlier versions have no counts of codes."""
        for state in (checkpoint["state_dict"], checkpoint.get("current_model_state", {})):
            for name, each in self.named_buffers():
                if name.startswith(("usage.", "anchors.")):
                    state.setdefault(name, each)

    def training_step(self, batch: Float[Tensor, "b 3 h w"], batch_idx: int) -> Float[Tensor, ""] | None:
        """Reconstruct a batch of pictures."""
        self.codebook_before = {name: each.detach().clone() for name, each in self.tokenizer.quantizer.named_buffers()}
        if self.global_step % REVIVE_EVERY == 0:
            self._revive(batch)
        result = self.tokenizer(batch) if self.learns_codes else self.tokenizer.redraw(batch)
        loss = self._reconstruction(batch, result.pixels) + self.losses.codebook_weight * result.codebook_loss
        self._count(result.codes)
        if (self.global_step + 1) % self.run.log_every == 0:  # what a bar shows, the host waits for
            self.log("train_loss", loss.detach(), prog_bar=True, sync_dist=True)
            self.log("train_psnr", psnr(batch, result.pixels.detach()).mean(), prog_bar=True, sync_dist=True)
            self._log_codebook()
        if self.discriminator is None:
            return loss
        self._adversarial_step(batch, result.pixels, loss)
        return None

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip, or leave the step out; a codebook that is a moving average has already followed it, and goes back.

        Raises:
            ValueError: five steps in a row were not finite.
        """
        super().configure_gradient_clipping(optimizer)
        for name, each in self.tokenizer.quantizer.named_buffers():
            each.detach().copy_(torch.where(self.bad_steps.last, self.codebook_before[name], each.detach()))

    @torch.no_grad()
    def _revive(self, batch: Float[Tensor, "b 3 h w"]) -> None:
        """Put the vectors of dead codes where latents are; codebooks that are moving averages do so themselves."""
        quantizer, dead = self.tokenizer.quantizer, self.usage.dead
        if not (self.learns_codes and quantizer.revives and self.usage.settled and bool(dead.any())):
            return
        vectors = quantizer.project_in(flatten_grid(self.tokenizer.encoder(batch))).float().flatten(0, 1)
        chosen = vectors[torch.randint(len(vectors), (int(dead.sum()),), device=vectors.device)]
        quantizer.revive(dead, sum_over_ranks(chosen if is_first() else torch.zeros_like(chosen)))

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
        """Update tokenizer and discriminator in turn, the adversarial term scaled by gradients (equation 7).

        Both begin at a step, as in the authors' code: of reconstructions that are still poor there is nothing to learn.
        """
        assert self.discriminator is not None, "only with a discriminator"
        generator, critic = cast(Any, self.optimizers())
        begun = self.global_step >= self.losses.adversarial_start
        if begun:
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
        schedules = cast(Any, self.lr_schedulers())
        schedules[0].step()
        if begun:
            self._judge(critic, real, drawn.detach())
            schedules[1].step()

    def _judge(self, critic: Any, real: Tensor, drawn: Tensor) -> None:
        """Let the discriminator learn from a step."""
        assert self.discriminator is not None, "only with a discriminator"
        critic.zero_grad()
        scores = self.discriminator(real), self.discriminator(drawn)
        hinge = 0.5 * (F.relu(1 - scores[0]).mean() + F.relu(1 + scores[1]).mean())
        held = hinge
        if self.anchors is not None:
            held = hinge + self.losses.lecam_weight * self.anchors.penalty(*scores)
            self.anchors.follow(*scores)
        self.manual_backward(held)
        clip_or_skip(critic, self.optimizer_config.gradient_clip)
        critic.optimizer.step()  # below Lightning's wrapper, which would count a second step of the run
        self.log("discriminator_loss", hinge.detach(), sync_dist=True)

    @torch.no_grad()
    def _count(self, codes: Int[Tensor, "b rows columns"]) -> None:
        """Count the codes of a step, over all processes; `torch.bincount` would wait for the largest."""
        counts = torch.zeros(self.tokenizer.codebook_size, dtype=torch.long, device=codes.device)
        self.usage.add(sum_over_ranks(counts.scatter_add_(0, codes.flatten(), torch.ones_like(codes).flatten())))

    def _log_codebook(self) -> None:
        """Log how many codes are in use, and warn when they have become few."""
        dead = float(self.usage.dead.float().mean())
        self.log("codebook_perplexity", self.usage.perplexity)
        self.log("codebook_used", 1 - dead)
        collapsed = self.usage.collapsed and self.global_step >= SETTLED_STEPS
        if collapsed and not self.collapsed:
            log.warning(
                "step %d: the codebook collapses: perplexity %.0f of %d codes, %.0f %% of them dead; lower "
                "optimizer.learning_rate, see that tokenizer.quantizer.dead_code_threshold is above 0, or take fewer "
                "codes or tokenizer.quantizer.kind fsq, which has none to lose.",
                self.global_step, self.usage.perplexity, self.tokenizer.codebook_size, 100 * dead,
            )  # fmt: skip
        self.collapsed = collapsed


def psnr(real: Float[Tensor, "b 3 h w"], drawn: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Return the peak signal-to-noise ratio in decibel of pixels in [-1, 1] (peak to peak 2)."""
    error = (real.float() - drawn.float().clamp(-1, 1)).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error.clamp(min=1e-10))
