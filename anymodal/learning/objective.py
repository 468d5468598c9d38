"""The objective of the unified model: understanding and generation in one step."""

from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
from anymodal.learning.optimizer import build_optimizer, rate_at
from anymodal.model.loss import TokenLoss
from anymodal.model.unified import AnyModal
from anymodal.tokens.batch import IGNORE, Batch

MAX_BAD_STEPS = 5


class Objective(pl.LightningModule):
    """What every objective shares: optimizer, schedule, clipping, and steps that a NaN cannot poison."""

    def __init__(self, optimizer: OptimizerConfig, run: RunConfig) -> None:
        """Keep the configuration."""
        super().__init__()
        self.optimizer_config, self.run = optimizer, run
        self.bad_steps = 0

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and its schedule over steps."""
        optimizer = build_optimizer(self, self.optimizer_config)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_at(step, self.optimizer_config, self.run.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout by (seed, step, rank), so that a resumed run repeats an uninterrupted one."""
        torch.manual_seed(hash((self.run.seed, self.global_step, self.global_rank)) % 2**63)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip by the global norm; a step whose gradient is not finite changes nothing.

        Raises:
            ValueError: five steps in a row were not finite.
        """
        norm = clip_or_drop(optimizer, self.optimizer_config.gradient_clip)
        if torch.isfinite(norm):
            self.bad_steps = 0
            self.log("gradient_norm", norm)
            return
        self.bad_steps += 1
        if self.bad_steps >= MAX_BAD_STEPS:
            raise ValueError(
                f"the gradient was not finite in {MAX_BAD_STEPS} steps in a row (up to step {self.global_step}); lower "
                "the learning rate, turn qk_norm on, and resume from the last checkpoint."
            )


def clip_or_drop(optimizer: Any, limit: float) -> Float[Tensor, ""]:
    """Clip the gradients of an optimizer by their global norm, or drop them where it is not finite; return the norm."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    if not torch.isfinite(norm):
        for parameter in parameters:
            parameter.grad = None
    return norm


class UnifiedObjective(Objective):
    """Sum of the losses of text and image ids, each over its own targets on all ranks."""

    def __init__(self, model: AnyModal, *, stage: StageConfig, optimizer: OptimizerConfig, run: RunConfig) -> None:
        """Train `model` as `stage` says."""
        super().__init__(optimizer, run)
        self.model, self.stage = model, stage

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """Return the loss of a packed batch."""
        noised = with_code_noise(batch, self.model.code_of, self.stage.code_noise)
        losses = self.model(noised).losses
        loss = self._combine(losses)
        self._log_losses("train", losses, loss)
        self.log("tokens", float(batch.num_tokens), reduce_fx="sum")
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the losses of a held-out batch."""
        losses = self.model(batch).losses
        self._log_losses("held_out", losses, self._combine(losses))

    def _combine(self, losses: dict[str, TokenLoss]) -> Float[Tensor, ""]:
        weights = {"text": self.stage.text_weight, "image": self.stage.image_weight}
        loss = torch.zeros((), device=self.device)
        for name, part in losses.items():
            total = part.total + self.stage.z_loss * part.z_total
            loss = loss + weights[name] * total * self._world_share(part.count)
        return loss

    def _world_share(self, count: Tensor) -> Float[Tensor, ""]:
        """Return what a sum here is worth: ranks are averaged by the engine, targets are counted over all of them."""
        world = self.trainer.world_size if self._trainer is not None else 1
        over_all = count.float()
        if world > 1:
            over_all = torch.as_tensor(self.all_gather(over_all)).sum()
        return world / over_all.clamp(min=1)

    def _log_losses(self, name: str, losses: dict[str, TokenLoss], loss: Tensor) -> None:
        shown = name == "train"
        for modality, part in losses.items():
            if int(part.count):
                self.log(f"{name}_{modality}_loss", part.mean.detach(), prog_bar=shown, batch_size=int(part.count))
                accuracy = part.correct / part.count
                self.log(f"{name}_{modality}_accuracy", accuracy, batch_size=int(part.count))
        self.log(f"{name}_loss", loss.detach(), prog_bar=not shown, batch_size=1)
        if shown:
            self.log("max_logit", torch.stack([part.max_logit for part in losses.values()]).max())


def with_code_noise(batch: Batch, code_of: Int[Tensor, " v"], most: float) -> Batch:
    """Exchange some of the codes that a drawing is read on with codes from elsewhere in the batch; targets stay.

    Each document draws its own share from [0, most). A drawn code mostly follows from the codes before it; a model that
    always reads the truth draws its first codes from memory and never learns to heed the prompt, and when it samples it
    meets its own mistakes for the first time (exposure bias, arXiv:1506.03099).
    """
    if not most or batch.documents is None:
        return batch
    drawn = torch.zeros_like(batch.ids, dtype=torch.bool)
    drawn[:, 1:] = (batch.targets[:, :-1] != IGNORE) & (code_of[batch.ids[:, 1:]] >= 0)
    codes = batch.ids[drawn]
    if not len(codes):
        return batch
    shares = most * torch.rand(int(batch.documents.max()) + 1, device=codes.device)
    changed = torch.rand(codes.shape, device=codes.device) < shares[batch.documents[drawn]]
    elsewhere = codes[torch.randint(len(codes), codes.shape, device=codes.device)]
    ids = batch.ids.clone()
    ids[drawn] = torch.where(changed, elsewhere, codes)
    return replace(batch, ids=ids)
