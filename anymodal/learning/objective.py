"""The objective of the unified model: understanding and generation in one step."""

from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from anymodal.learning.accumulation import add_up, over_ranks, split_rows
from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
from anymodal.learning.distributed import gather_into, sharded, sum_over_ranks, whole_tensor
from anymodal.learning.optimizer import Trained, build_optimizer, rate_at, trainable
from anymodal.learning.passing import through_of
from anymodal.learning.stages import trained_of
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
        optimizer = build_optimizer(self.trained(), self.optimizer_config)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_at(step, self.optimizer_config, self.run.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def trained(self) -> list[Trained]:
        """Return what learns, and at which rate."""
        return trainable(self)

    def gather(self) -> None:
        """Make the weights whole on the first process, where they are spread; every process must call it."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout by (seed, step, rank), so that a resumed run repeats an uninterrupted one."""
        torch.manual_seed(hash((self.run.seed, self.global_step, self.global_rank)) % 2**63)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip by the global norm; a step whose gradient is not finite changes nothing.

        Raises:
            ValueError: five steps in a row were not finite.
        """
        norm = clip_or_drop(optimizer, self.optimizer_config.gradient_clip)
        self.log("gradient_norm", norm)
        if torch.isfinite(norm):
            self.bad_steps = 0
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
    norm = whole_tensor(torch.nn.utils.clip_grad_norm_(parameters, limit))
    if not torch.isfinite(norm):
        for parameter in parameters:
            parameter.grad = None
    return norm


class UnifiedObjective(Objective):
    """Sum of the losses of text and image ids, each over its own targets on all ranks and in all pieces of a step."""

    def __init__(self, model: AnyModal, *, stage: StageConfig, optimizer: OptimizerConfig, run: RunConfig) -> None:
        """Train `model` as `stage` says."""
        super().__init__(optimizer, run)
        self.model, self.stage = model, stage
        self.whole: AnyModal | None = None  # what was given, where the model that trains is spread over processes

    def configure_model(self) -> None:
        """Spread the weights over the processes of a strategy that has a mesh of them."""
        if self.device_mesh is not None and self.whole is None:
            whole, self.model = self.model, sharded(self.model, self.device_mesh["data_parallel"])
            object.__setattr__(self, "whole", whole.eval())  # past torch, for which it would be a part of this module

    def on_fit_start(self) -> None:
        """Say how steps pass the blocks."""
        self.model.transformer.through = through_of(self.run)

    def on_fit_end(self) -> None:
        """Leave the model as it came."""
        self.model.transformer.through = None

    def gather(self) -> None:
        """Bring the model that was given up to date on the first process; every process must call it."""
        if self.whole is not None:
            gather_into(self.whole, self.model)

    def trained(self) -> list[Trained]:
        """Return the parts that the stage trains."""
        return trained_of(self.model, self.stage)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """Return the loss of a packed batch; where it is computed in pieces, of the last, the others' gradients are in.

        A data-parallel engine waits for the gradients of the loss that is returned, and then sends those of all pieces.
        """
        self.zero_grad()
        noised = with_code_noise(batch, self.model.code_of, self.stage.code_noise)
        counts = self._target_counts(batch)
        *before, last = split_rows(noised, self.run.accumulate)
        sums = []
        for piece in before:
            sums.append(self.model(piece, self.stage.z_loss).losses)
            loss = self._combine(sums[-1], counts)
            with torch.autocast(self.device.type, enabled=False):
                loss.backward()
        sums.append(self.model(last, self.stage.z_loss).losses)
        if (self.global_step + 1) % self.run.log_every == 0:
            self._log_losses("train", add_up(sums), counts)
        return self._combine(sums[-1], counts)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Keep the gradients of the first pieces, which Lightning would clear; `training_step` cleared older ones."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the losses of a held-out batch."""
        self._log_losses("held_out", self.model(batch, self.stage.z_loss).losses, self._target_counts(batch))

    def _target_counts(self, batch: Batch) -> dict[str, Tensor]:
        """Count the targets of each modality on all ranks."""
        wanted = batch.targets[batch.targets != IGNORE]
        is_code = self.model.code_of[wanted] >= 0
        counts = sum_over_ranks(torch.stack([(~is_code).sum(), is_code.sum()]))
        return {"text": counts[0], "image": counts[1]}

    def _combine(self, losses: dict[str, TokenLoss], counts: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Weigh sums by what a target is worth; the engine will average over ranks."""
        weights = {"text": self.stage.text_weight, "image": self.stage.image_weight}
        loss = torch.zeros((), device=self.device)
        for name, part in losses.items():
            loss = loss + weights[name] * part.total * (self._world / counts[name].to(part.total.dtype).clamp(min=1))
        return loss

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self._trainer is not None else 1

    @torch.no_grad()
    def _log_losses(self, name: str, losses: dict[str, TokenLoss], counts: dict[str, Tensor]) -> None:
        """Log what the processes have together."""
        shown = name == "train"
        losses = {modality: over_ranks(part) for modality, part in losses.items()}
        for modality, part in losses.items():
            if int(part.count):
                self.log(f"{name}_{modality}_loss", part.nats / part.count, prog_bar=shown, batch_size=int(part.count))
                accuracy = part.correct / part.count
                self.log(f"{name}_{modality}_accuracy", accuracy, batch_size=int(part.count))
        self.log(f"{name}_loss", self._combine(losses, counts) / self._world, prog_bar=not shown, batch_size=1)
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
