"""The objective of the unified model: understanding and generation in one step."""

from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from anymodal.learning.accumulation import StepBatch, add_up, over_ranks
from anymodal.learning.code_noise import with_code_noise
from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
from anymodal.learning.distributed import gather_into, sharded, sum_over_ranks
from anymodal.learning.guard import BadSteps, clip_or_skip
from anymodal.learning.optimizer import Schedule, Trained, build_optimizer, rate_at, trainable
from anymodal.learning.passing import through_of
from anymodal.learning.stages import trained_of
from anymodal.model.loss import TokenLoss
from anymodal.model.unified import AnyModal
from anymodal.tokens.batch import Batch


class Objective(pl.LightningModule):
    """What every objective shares: optimizer, schedule, clipping, and steps that a NaN cannot poison."""

    def __init__(self, optimizer: OptimizerConfig, run: RunConfig) -> None:
        """Keep the configuration."""
        super().__init__()
        self.optimizer_config, self.run = optimizer, run
        self.bad_steps = BadSteps()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and its schedule over steps."""
        optimizer = build_optimizer(self.trained(), self.optimizer_config)
        scheduler = Schedule(optimizer, lambda step: rate_at(step, self.optimizer_config, self.run.steps))
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
            ValueError: too many steps in a row were not finite, up to the one before.
        """
        self.bad_steps.check(self.global_step)
        norm = clip_or_skip(optimizer, self.optimizer_config.gradient_clip)
        self.bad_steps.add(norm)
        self.log("gradient_norm", norm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep no checkpoint behind too many steps that were not finite.

        Raises:
            ValueError: there were too many, up to the last one.
        """
        self.bad_steps.check(self.global_step)


class UnifiedObjective(Objective):
    """Sum of the losses of text and image ids, each over its own targets on all ranks and in all pieces of a step."""

    def __init__(self, model: AnyModal, *, stage: StageConfig, optimizer: OptimizerConfig, run: RunConfig) -> None:
        """Train `model` as `stage` says."""
        super().__init__(optimizer, run)
        self.model, self.stage = model, stage
        self.code_of = model.code_of.cpu()
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

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> StepBatch:
        """Find, before a batch leaves the host, all that the host will want to know of it."""
        return StepBatch.of(
            batch,
            self.code_of,
            device=device,
            accumulate=self.run.accumulate,
            exactly=self.whole is not None,
            noise=self.training and self.stage.code_noise > 0,
        )

    def training_step(self, batch: StepBatch, batch_idx: int) -> Float[Tensor, ""]:
        """Return the loss of a packed batch; where it is computed in pieces, of the last, the others' gradients are in.

        A data-parallel engine waits for the gradients of the loss that is returned, and then sends those of all pieces.
        """
        self.zero_grad()
        counts = self._target_counts(batch)
        *before, last = zip(self._pieces(batch), batch.layouts, strict=True)
        sums = []
        for piece, layout in before:
            sums.append(self.model(piece, self.stage.z_loss, layout).losses)
            loss = self._combine(sums[-1], counts)
            with torch.autocast(self.device.type, enabled=False):
                loss.backward()
        sums.append(self.model(last[0], self.stage.z_loss, last[1]).losses)
        if (self.global_step + 1) % self.run.log_every == 0:
            self._log_losses("train", add_up(sums), counts)
        return self._combine(sums[-1], counts)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Keep the gradients of the first pieces, which Lightning would clear; `training_step` cleared older ones."""

    def _pieces(self, batch: StepBatch) -> list[Batch]:
        """Return the pieces of a step as they are read."""
        if batch.drawn is None:
            return list(batch.pieces)
        ids = with_code_noise(
            torch.cat([piece.ids.flatten() for piece in batch.pieces]), batch.drawn, self.stage.code_noise
        )
        parts = ids.split([piece.ids.numel() for piece in batch.pieces])
        return [replace(piece, ids=part.view_as(piece.ids)) for piece, part in zip(batch.pieces, parts, strict=True)]

    def validation_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Log the losses of a held-out batch."""
        pieces = zip(batch.pieces, batch.layouts, strict=True)
        nothing = dict.fromkeys(("text", "image"), TokenLoss.none(self.device))  # all processes log the same
        sums = [self.model(piece, self.stage.z_loss, layout).losses or nothing for piece, layout in pieces]
        self._log_losses("held_out", add_up(sums), self._target_counts(batch))

    def _target_counts(self, batch: StepBatch) -> dict[str, Tensor]:
        """Return the targets of each modality on all ranks."""
        counts = sum_over_ranks(batch.counts)
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
        """Log what the processes have together; from the host, as Lightning reads what a bar shows in every step."""
        shown = name == "train"
        losses = {modality: over_ranks(part) for modality, part in losses.items()}
        for modality, part in losses.items():
            if int(part.count):
                self.log(f"{name}_{modality}_loss", part.nats / part.count, prog_bar=shown, batch_size=int(part.count))
                accuracy = part.correct / part.count
                self.log(f"{name}_{modality}_accuracy", accuracy, batch_size=int(part.count))
        whole = self._combine(losses, counts).cpu() / self._world
        self.log(f"{name}_loss", whole, prog_bar=not shown, batch_size=1)
        if shown:
            self.log("max_logit", torch.stack([part.max_logit for part in losses.values()]).max())
