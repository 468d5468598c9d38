"""Two processes take the steps of one, and what they save outlives a kill."""

import csv
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anymodal.data.index import ShardIndex
from anymodal.data.shards import Sample, write_shards
from anymodal.learning import fitting
from anymodal.learning.batches import DocumentBatches
from anymodal.learning.checkpoints import newest, step_of
from anymodal.learning.config import OptimizerConfig, Ratios, RunConfig, StageConfig
from anymodal.learning.distributed import (
    is_first,
    peers_explained,
    processes_of,
    sharded,
    strategy_of,
    whole_tensor,
)
from anymodal.learning.objective import UnifiedObjective
from anymodal.learning.unified_run import document_batches, train_unified
from anymodal.model import loss
from anymodal.model.folder import ModelFolder
from anymodal.model.linear_loss import LossByClasses

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="a process that may have started CUDA does not fork"),
    pytest.mark.filterwarnings("ignore"),
]

RUN = RunConfig(
    steps=6, batch_size=6, precision="float32", log_every=1, validate_every=3, validation_steps=2, checkpoint_every=2
)
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
KINDS = ("ddp", "fsdp")

Ranks = Callable[..., list[int]]


def train(toy: Any, out: Path, run: RunConfig = RUN, heads: str = "shared", **changes: Any) -> int:
    data = replace(toy.data, held_out=toy.coded)
    settings: dict[str, Any] = {"data": data, "stage": StageConfig(seq_len=256), "optimizer": OPTIMIZER, **changes}
    return train_unified(toy.parts(heads=heads), run=run, out=out, **settings)


def metrics(out: Path, *names: str) -> dict[str, dict[int, float]]:
    with (out / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: {int(row["step"]): float(row[name]) for row in rows if row.get(name)} for name in names}


LOSSES = ("train_loss", "train_text_loss", "train_image_accuracy", "max_logit", "held_out_loss", "held_out_image_loss")


def assert_same_run(one: Path, other: Path) -> None:
    first, second = metrics(one, *LOSSES), metrics(other, *LOSSES)
    assert sorted(first["train_loss"]) == list(range(RUN.steps))
    for name in LOSSES:
        assert second[name] == pytest.approx(first[name], rel=2e-4, abs=1e-5), name
    expected, found = (ModelFolder.load(out / "model").model.state_dict() for out in (one, other))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-4)


@pytest.fixture(scope="module")
def whole(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert train(toy, out) == 0
    return out


@pytest.mark.parametrize("strategy", KINDS)
def test_two_processes_take_the_steps_of_one(
    toy: Any, whole: Path, tmp_path: Path, ranks: Ranks, strategy: Any
) -> None:
    again = strategy == "fsdp"  # with blocks that are gathered once more on the way back
    run = replace(RUN, strategy=strategy, accumulate=5, checkpoint_activations=again, sample_every=3)
    shown = tmp_path / "shown"

    def show(step: int) -> None:
        with shown.open("a") as file:
            file.write(f"{step} ")

    short = StageConfig(seq_len=128)  # documents fill other numbers of rows here and there, fewer than pieces
    assert ranks(2, lambda _: train(toy, tmp_path, run, show=show, stage=short)) == [0, 0]
    assert_same_run(whole, tmp_path)
    assert shown.read_text() == "3 6 "


@pytest.mark.parametrize("strategy", KINDS)
def test_half_precision_scores_a_head_by_classes_in_two_processes(
    toy: Any, tmp_path: Path, ranks: Ranks, strategy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 64)
    backwards, said = LossByClasses.backward, tmp_path / "said"
    monkeypatch.setattr(
        LossByClasses, "backward", staticmethod(lambda *each: said.open("a").write(".") and backwards(*each))
    )
    run = replace(RUN, steps=3, precision="bf16", strategy=strategy)
    assert ranks(2, lambda _: train(toy, tmp_path / "two", run)) == [0, 0]
    assert ranks(1, lambda _: train(toy, tmp_path / "one", replace(run, strategy="ddp"))) == [0]
    assert said.read_text() == "." * 9
    one, two = (metrics(tmp_path / each, *LOSSES[:2])["train_loss"] for each in ("one", "two"))
    assert two == pytest.approx(one, rel=0.01)


@pytest.mark.parametrize("strategy", KINDS)
def test_a_run_goes_on_in_another_number_of_processes(
    toy: Any, whole: Path, tmp_path: Path, ranks: Ranks, interrupt: Any, strategy: Any
) -> None:
    run = replace(RUN, strategy=strategy)
    for world, last in ((1, 2), (2, 4), (1, 6)):
        with pytest.MonkeyPatch.context() as patch:
            if last < RUN.steps:
                interrupt(patch, last, number=signal.SIGTERM, rank=world - 1)
            codes = ranks(world, lambda _: train(toy, tmp_path, run))
        assert codes == [75 if last < RUN.steps else 0] * world
        checkpoint = newest(tmp_path / "checkpoints")
        assert checkpoint is not None
        assert step_of(checkpoint) == last
        assert checkpoint.is_dir() == (strategy == "fsdp")
    assert_same_run(whole, tmp_path)


def test_what_any_process_skips_is_counted(
    toy: Any, tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = ShardIndex.open(toy.coded)
    bare = [Sample(f"bare-{i}", {"txt": b"a dog", "codes.0000.npy": b"of another tokenizer"}) for i in range(12)]
    write_shards([*(index.read(i) for i in range(len(index))), *bare], f"{tmp_path}/mixed/%06d.tar")
    told = tmp_path / "told"
    monkeypatch.setattr(fitting.log, "warning", lambda text, *values: told.open("a").write(text % values))
    stage = StageConfig(seq_len=256, ratios=Ratios(draw=1.0, answer=0.0, text=0.0))
    run = replace(RUN, steps=3, batch_size=12, validate_every=0)  # an epoch
    data = replace(toy.data, train=f"{tmp_path}/mixed")
    assert ranks(2, lambda rank: train(toy, tmp_path / "run", run, data=data, stage=stage)) == [0, 0]
    assert told.read_text() == 2 * "skipped 12 samples: no codes", "both know it; one has a log that shows it"


@pytest.mark.parametrize(("accumulate", "heads"), [(1, "shared"), (3, "decoupled")])
@pytest.mark.parametrize("strategy", KINDS)
def test_a_process_that_could_read_nothing_takes_the_step_of_the_others(
    toy: Any, tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch, strategy: Any, accumulate: int, heads: str
) -> None:
    run = replace(RUN, strategy=strategy, accumulate=accumulate, steps=3, validate_every=0)
    stage = StageConfig(seq_len=256)
    parts = toy.parts(heads=heads)
    read = document_batches(parts, toy.data, toy.data.train, stage, run)
    read.rank = (0, 2)
    model = parts.model.train()
    losses = model(read[0], stage.z_loss).losses
    assert {name: int(part.count) for name, part in losses.items() if part.count > 0}.keys() == {"text", "image"}
    sum(part.total / part.count for part in losses.values()).backward()
    lost = {*read.order.step(0, rank=1, world=2), *read.order.step(1)}  # the share of one, then of both
    document, clip = DocumentBatches._document, UnifiedObjective.configure_gradient_clipping
    monkeypatch.setattr(DocumentBatches, "_document", lambda self, slot: None if slot in lost else document(self, slot))

    def noted(self: UnifiedObjective, *arguments: Any, **options: Any) -> None:
        found = {name: whole_tensor(each.grad) for name, each in self.model.named_parameters() if each.grad is not None}
        if self.global_rank == 0:
            torch.save(found, tmp_path / f"{self.global_step}.pt")
        clip(self, *arguments, **options)

    monkeypatch.setattr(UnifiedObjective, "configure_gradient_clipping", noted)
    assert ranks(2, lambda _: train(toy, tmp_path / "run", run, heads, stage=stage)) == [0, 0]
    first, nothing, last = (torch.load(tmp_path / f"{step}.pt", weights_only=True) for step in range(3))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(first[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert all(not gradient.any() for gradient in nothing.values())
    assert all(bool(gradient.isfinite().all()) for gradient in last.values())
    assert any(bool(gradient.any()) for gradient in last.values())


def test_a_number_of_processes_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes_of(RUN) == (1, 1)
    assert processes_of(replace(RUN, devices=3)) == (3, 1)
    for name, value in {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    assert processes_of(RUN) == (2, 3)
    with pytest.raises(ValueError, match="the launcher started, 2 processes a machine, got 4; leave it out"):
        processes_of(replace(RUN, devices=4))
    with pytest.raises(ValueError, match="batch_size .* a multiple of their number 6, got 8"):
        processes_of(replace(RUN, batch_size=8))


def test_slurm_says_how_many_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "4"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert processes_of(RUN) == (2, 3)
    assert not is_first()


def test_sharded_weights_have_no_average() -> None:
    with pytest.raises(ValueError, match=r"ema_decay needs whole weights .* or run.strategy to ddp"):
        strategy_of(replace(RUN, strategy="fsdp", ema_decay=0.9), 2)
    assert strategy_of(RUN, 1) == "auto"


def is_plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, DTensor) and not value.is_meta


class Made(TorchDispatchMode):
    """Count the bytes of the tensors that are made, in storages of their own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = dict[int, int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {each.untyped_storage().data_ptr() for each in tree_leaves((args, kwargs)) if is_plain(each)}
        out = func(*args, **(kwargs or {}))
        made = (each.untyped_storage() for each in tree_leaves(out) if is_plain(each))
        self.bytes.update({each.data_ptr(): each.nbytes() for each in made if each.data_ptr() not in given})
        return out


def test_spreading_copies_a_share_and_no_more(toy: Any, ranks: Ranks) -> None:
    model = toy.parts(tie_embeddings=True).model
    model.understanding.requires_grad_(False)
    begun = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def spread(_: int) -> int:
        dist.init_process_group("gloo")
        with Made() as made:
            shards = sharded(model, init_device_mesh("cpu", (2,)))
        assert sum(made.bytes.values()) < 0.6 * sum(each.nbytes for each in model.parameters())
        assert shards.head.weight is shards.embedding.weight
        assert [each.requires_grad for each in shards.parameters()] == [
            each.requires_grad for each in model.parameters()
        ]
        assert all(torch.equal(whole_tensor(each), begun[name]) for name, each in shards.state_dict().items())
        with torch.no_grad():
            shards.head.weight.zero_()
        assert all(torch.equal(each, begun[name]) for name, each in model.state_dict().items()), "the whole stays"
        return 0

    assert ranks(2, spread) == [0, 0]


def test_shards_go_on_in_shards(toy: Any, tmp_path: Path, ranks: Ranks, capfd: pytest.CaptureFixture[str]) -> None:
    short = replace(RUN, steps=1, validate_every=0, checkpoint_every=1)
    once: dict[str, torch.Tensor] = {}
    for _ in range(2):  # the second time there is nothing left to do
        assert ranks(2, lambda _: train(toy, tmp_path, replace(short, strategy="fsdp"))) == [0, 0]
        found = ModelFolder.load(tmp_path / "model").model.state_dict()
        once = once or found
        assert all(torch.equal(found[name], tensor) for name, tensor in once.items())
    begun = toy.parts().model.state_dict()
    assert any(not torch.equal(begun[name], tensor) for name, tensor in once.items())
    (tmp_path / "run.yaml").unlink()  # which would refuse it before
    assert ranks(1, lambda _: train(toy, tmp_path, replace(short, steps=2))) == [1]
    assert "was saved in shards; resume it with run.strategy fsdp" in capfd.readouterr().out


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/w/gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 20000ms for recv"),
        RuntimeError("Application timeout caused pair closure"),  # the other end of the same race in gloo
        dist.DistNetworkError("The client socket has timed out"),
    ],
)
def test_lost_peers_are_explained_whatever_the_engine_calls_it(error: RuntimeError) -> None:
    patient = replace(RUN, peer_timeout_s=7.0)
    with pytest.raises(ConnectionError, match=r"lost each other \(.* did not answer for 7 s"), peers_explained(patient):
        raise error
    with pytest.raises(RuntimeError, match="^shapes do not match$"), peers_explained(RUN):
        raise RuntimeError("shapes do not match")
