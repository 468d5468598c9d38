"""A training step asks its device nothing: no number is read from it, and no shape depends on what it holds.

torch's meta device, which holds nothing, stands for a GPU where a copy from the host would wait, too.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anymodal.learning.batches import DocumentBatches
from anymodal.learning.config import ImageObjectiveConfig, OptimizerConfig, RunConfig, StageConfig
from anymodal.learning.guard import clip_or_skip
from anymodal.learning.image_run import train_image_tokenizer
from anymodal.learning.objective import UnifiedObjective
from anymodal.learning.unified_run import document_batches, train_unified
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig

WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "repeat_interleave", "_unique2",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
ALLOWED = {
    ("learning/batches.py", "__getitem__"): "a batch is made on the host",
    ("learning/accumulation.py", "of"): "it is looked at before it leaves the host",
    ("learning/guard.py", "in_a_row"): "reads what the device sent a step ago, or before a checkpoint is written",
    ("learning/callbacks.py", "on_train_batch_end"): "counts on the host's own copy of a batch",
    ("callbacks/weight_averaging.py", "on_train_batch_end"): "reads a count that `Averaging` keeps on the host",
    ("learning/objective.py", "_log_losses"): "logs, at their interval",
    ("learning/image_objective.py", "_log_codebook"): "the same",
    ("learning/image_objective.py", "_revive"): "every hundredth step",
    ("logger_connector/logger_connector.py", "update_train_step_metrics"): "the same",
    ("logger_connector/logger_connector.py", "on_batch_end"): "reads what a bar shows, which is logged from the host",
}


class Watch(TorchDispatchMode, pl.Callback):
    """Note, from the second step on, who makes the host wait, beside those who may."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: set[str] = set()
        self.watches = False

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.watches = trainer.global_step < trainer.max_steps  # what a run ends with is another matter

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name.startswith("index") and any(getattr(each, "dtype", None) == torch.bool for each in _flat(args))
        if self.watches and (name in WAITS or by_mask):
            frames = list(_frames())
            if not any(frame[0].endswith(file) and frame[2] == of for frame in frames for file, of in ALLOWED):
                own = [frame for frame in frames if "/anymodal/" in frame[0] or "/lightning/" in frame[0]]
                self.waits.add(f"{name} in {own[:3]}")
        return function(*args, **(kwargs or {}))


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        yield from _flat(value) if isinstance(value, (list, tuple)) else (value,)


def _frames() -> Iterator[tuple[str, int, str]]:
    frame = sys._getframe(2)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]


def test_a_run_waits_for_nothing_between_its_logs(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disturb: Callable[..., None]
) -> None:
    watch = Watch()
    disturb(monkeypatch, watch)
    run = RunConfig(
        steps=4, batch_size=8, accumulate=2, log_every=2, validate_every=0, ema_decay=0.9, precision="float32"
    )
    stage = StageConfig(seq_len=256, code_noise=0.2)
    with watch:
        train_unified(toy.parts(), data=toy.data, stage=stage, optimizer=OptimizerConfig(), run=run, out=tmp_path)
    assert not watch.waits, "\n".join(sorted(watch.waits))


@pytest.mark.parametrize("kind", ["fsq", "lfq", "simvq"])  # a moving average looks for dead codes in every step
@pytest.mark.parametrize("adversarial", [0.0, 0.5])
def test_an_image_tokenizer_waits_for_nothing_between_its_logs(
    toy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    disturb: Callable[..., None],
    kind: Any,
    adversarial: float,
) -> None:
    levels = (4, 4) if kind == "fsq" else ()
    quantizer = QuantizerConfig(kind=kind, codebook_size=16, codebook_dim=4, levels=levels)
    config = ImageTokenizerConfig(channels=(8,), norm_groups=4, blocks=1, latent_channels=8, quantizer=quantizer)
    losses = ImageObjectiveConfig(
        size=16, adversarial_weight=adversarial, adversarial_start=0, lecam_weight=0.1 * adversarial
    )
    watch = Watch()
    disturb(monkeypatch, watch)
    with watch:
        train_image_tokenizer(
            ImageTokenizer(config),
            data=toy.data,
            losses=losses,
            optimizer=OptimizerConfig(),
            run=RunConfig(steps=5, batch_size=4, log_every=4, validate_every=0, precision="float32"),
            out=tmp_path,
        )
    assert not watch.waits, "\n".join(sorted(watch.waits))


class Copies(TorchDispatchMode):
    """Note what is copied from the host to the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copied: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("_to_copy", "copy_") and made.is_meta != args[1 if name == "copy_" else 0].is_meta:
            self.note()
        return made

    def noting(self, make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Note numbers that become tensors of the device, which the meta device makes past every dispatch."""

        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            if tensor.is_meta:
                self.note()
            return tensor

        return made

    def note(self) -> None:
        self.copied.append(str([frame for frame in _frames() if "/anymodal/" in frame[0]][:3]))


@pytest.mark.parametrize("heads", ["shared", "decoupled"])
def test_a_step_on_a_device_that_holds_nothing(toy: Any, monkeypatch: pytest.MonkeyPatch, heads: Any) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # which the meta device does not know
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    parts, meta = toy.parts(heads=heads, picture_places=17), torch.device("meta")
    stage = StageConfig(seq_len=256, code_noise=0.2)
    run = RunConfig(steps=2, batch_size=8, accumulate=2, log_every=9)
    batches: DocumentBatches = document_batches(parts, toy.data, toy.data.train, stage, run)
    objective = UnifiedObjective(parts.model, stage=stage, optimizer=OptimizerConfig(), run=run).train()
    objective.log = lambda *_, **__: None  # type: ignore[method-assign]
    ready = objective.to(meta).transfer_batch_to_device(batches[0], meta, 0)
    assert ready.drawn is not None and not ready.host.ids.is_meta
    with Copies() as copies:
        for holder, name in ((torch, "tensor"), (torch.Tensor, "new_tensor")):
            monkeypatch.setattr(holder, name, copies.noting(getattr(holder, name)))
        objective.training_step(ready, 0).backward()
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
        norm = clip_or_skip(optimizer, 1.0)
        assert norm.is_meta
    assert not copies.copied, "\n".join(copies.copied)
