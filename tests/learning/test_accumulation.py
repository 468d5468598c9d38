"""A step is what it is, in however many pieces and processes it is computed."""

from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from anymodal.learning.accumulation import StepBatch, add_up, split_rows
from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
from anymodal.learning.objective import UnifiedObjective
from anymodal.model.config import AnyModalConfig, TransformerConfig, UnderstandingConfig
from anymodal.model.unified import AnyModal
from anymodal.tokens.batch import Batch, lay_out
from anymodal.tokens.document import TokenSequence
from anymodal.tokens.vocabulary import Vocabulary

NUM_ROWS, LENGTH = 6, 24


def sequence(number: int) -> TokenSequence:
    """Make documents whose shares of text and codes differ, every other one with a picture."""
    codes = [12 + (number * k) % 6 for k in range(2 + 3 * (number % 4))]
    seen = [1] * 4 if number % 2 else [2] * 4
    ids = torch.tensor([2, *seen, 3 + number, *codes, 5, 6, 7][: 12 + number])
    pixels = torch.linspace(-1, 1, 192, dtype=torch.float64).view(3, 8, 8) * (1 + number) / 6
    return TokenSequence(ids, torch.arange(len(ids)) > 5 - number % 2, ((1, pixels),) if number % 2 else ())


def rows(first: int, end: int) -> Batch:
    return lay_out([[sequence(k), sequence(k)][: 1 + k // 4] for k in range(first, end)], 2 * LENGTH, 0, 4)


def make(accumulate: int = 1) -> UnifiedObjective:
    torch.manual_seed(0)
    transformer = TransformerConfig(dim=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, hidden_dim=32)
    understanding = UnderstandingConfig(image_size=8, patch_size=4, dim=8, depth=1, num_heads=2, hidden_dim=16)
    vocabulary = Vocabulary.build(text_size=12, specials={"pad": 0, "look": 1}, codebook_size=6)
    config = AnyModalConfig(transformer=transformer, understanding=understanding, heads="decoupled")
    run = RunConfig(steps=2, accumulate=accumulate)
    optimizer = OptimizerConfig(warmup_steps=0, eps=1e-4)
    model = AnyModal(config, vocabulary).double()
    return UnifiedObjective(model, stage=StageConfig(image_weight=0.5), optimizer=optimizer, run=run).train()


def ready(objective: UnifiedObjective, batch: Batch) -> StepBatch:
    return objective.transfer_batch_to_device(batch, objective.device, 0)


def gradients(accumulate: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    objective, logged = make(accumulate), dict[str, float]()
    objective.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[method-assign]
    objective.training_step(ready(objective, rows(0, NUM_ROWS)), 0).backward()
    held = {name: parameter.grad for name, parameter in objective.named_parameters() if parameter.grad is not None}
    return held, logged


@pytest.mark.parametrize("accumulate", [2, 3, 4, 99])
def test_pieces_have_the_gradient_of_the_whole(accumulate: int) -> None:
    (whole, said), (pieces, said_of_pieces) = gradients(1), gradients(accumulate)
    assert set(pieces) == set(whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, rtol=0, atol=1e-10)
    assert said_of_pieces == pytest.approx(said, abs=1e-6)


def test_held_out_batches_are_read_in_pieces_too() -> None:
    def held_out(accumulate: int) -> tuple[dict[str, float], list[int]]:
        objective, logged, read = make(accumulate).eval(), dict[str, float](), list[int]()
        objective.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[method-assign]
        objective.model.register_forward_pre_hook(lambda _, given: read.append(len(given[0].ids)))
        with torch.no_grad():
            objective.validation_step(ready(objective, rows(0, NUM_ROWS)), 0)
        return logged, read

    (whole, all_rows), (pieces, few_rows) = held_out(1), held_out(3)
    assert pieces == pytest.approx(whole, abs=1e-6)
    assert {"held_out_loss", "held_out_text_loss", "held_out_image_loss"} <= set(whole)
    assert (all_rows, few_rows) == ([NUM_ROWS], [NUM_ROWS // 3] * 3)


def test_pieces_that_no_row_is_left_for_change_nothing() -> None:
    objective, spread = make(), make(NUM_ROWS + 3)
    spread.whole = spread.model  # as if its weights were spread over processes
    for each in (objective, spread):
        each.log = lambda *_, **__: None  # type: ignore[method-assign]
    pieces = ready(spread, rows(0, NUM_ROWS))
    assert len(pieces.pieces) == len(pieces.layouts) == NUM_ROWS + 3
    assert pieces.counts.tolist() == ready(objective, rows(0, NUM_ROWS)).counts.tolist()
    spread.training_step(pieces, 0).backward()
    objective.training_step(ready(objective, rows(0, NUM_ROWS)), 0).backward()
    for (name, one), other in zip(objective.named_parameters(), spread.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=1e-10, msg=name)


def test_a_mean_of_means_would_be_another_gradient() -> None:
    objective = make()
    objective.log = lambda *_, **__: None  # type: ignore[method-assign]
    halves = [ready(objective, half) for half in (rows(0, 3), rows(3, 6))]
    losses = [objective.training_step(half, 0) for half in halves]
    objective.zero_grad()
    (losses[0] / 2 + losses[1] / 2).backward()
    wrong = objective.model.head.weight.grad
    assert wrong is not None
    right = gradients(1)[0]["model.head.weight"]
    assert float((wrong - right).norm() / right.norm()) > 0.02


def test_pieces_are_the_rows_with_their_pictures() -> None:
    batch = rows(0, NUM_ROWS)
    pieces = split_rows(batch, 4)
    assert [len(piece.ids) for piece in pieces] == [2, 2, 1, 1]
    for name in ("ids", "targets", "positions", "documents"):
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(batch, name))
    for piece in pieces:
        places = torch.nonzero(piece.ids.flatten() == 1).flatten()
        index = torch.empty(0, dtype=torch.long) if piece.look_index is None else piece.look_index.flatten()
        assert torch.equal(places, index.sort().values)
    pixels = [piece.look_pixels for piece in pieces if piece.look_pixels is not None]
    assert batch.look_pixels is not None
    assert torch.equal(torch.cat(pixels), batch.look_pixels)
    assert len(pixels) < len(pieces), "a piece without pictures has none"


def test_sums_have_no_graph() -> None:
    objective = make()
    first, second = (objective.model(rows(k, k + 1)).losses for k in (1, 2))
    total = add_up([first, second])["image"]
    assert not total.total.requires_grad
    assert int(total.count) == int(first["image"].count) + int(second["image"].count)
    assert float(total.max_logit) == max(float(first["image"].max_logit), float(second["image"].max_logit))


class Rows(Dataset[Batch]):
    """Give every process its share of the same rows, uneven in targets."""

    def __init__(self, rank: int, world: int) -> None:
        self.share = (rank * NUM_ROWS // world, (rank + 1) * NUM_ROWS // world)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, step: int) -> Batch:
        return rows(*self.share)


class RowData(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Batch]:
        trainer = self.trainer
        assert trainer is not None
        return DataLoader(Rows(trainer.global_rank, trainer.world_size), batch_size=None, shuffle=False)


class Saving(UnifiedObjective):
    """Keep the weights in float64: the way back from a process goes through the parent's float32."""

    folder: Path

    def on_train_end(self) -> None:
        if self.global_rank == 0:
            torch.save(self.model.state_dict(), self.folder / "weights.pt")


def weights(folder: Path, world: int, accumulate: int) -> dict[str, torch.Tensor]:
    made = make(accumulate)
    objective = Saving(made.model, stage=made.stage, optimizer=made.optimizer_config, run=made.run).train()
    objective.folder = folder
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp_fork" if world > 1 else "auto",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(objective, datamodule=RowData())
    found: dict[str, torch.Tensor] = torch.load(folder / "weights.pt", weights_only=True)
    return found


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep the threads of OpenMP, which a forked process would wait for in vain, out of this test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a process that may have started CUDA does not fork")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_thread")
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    one, two = weights(tmp_path, 1, 1), weights(tmp_path, 2, 2)
    assert next(iter(two.values())).dtype == torch.float64
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-10)
