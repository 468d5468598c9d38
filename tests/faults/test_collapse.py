"""An image tokenizer whose codebook collapses, or whose loss is no number: told, logged, and mended."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from anymodal.data.config import DataConfig
from anymodal.learning import image_objective
from anymodal.learning.config import ImageObjectiveConfig, OptimizerConfig, RunConfig
from anymodal.learning.image_objective import ImageTokenizerObjective
from anymodal.learning.image_run import train_image_tokenizer
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig
from anymodal.tokens.quantizer import LearnedCodebook

STEPS = 36
CODES = 16
KINDS = [("vq", "average"), ("l2-vq", "average"), ("vq", "gradient"), ("l2-vq", "gradient")]


def build(kind: Any, update: Any, **changes: Any) -> ImageTokenizer:
    torch.manual_seed(0)
    quantizer = QuantizerConfig(kind=kind, codebook_update=update, codebook_size=CODES, codebook_dim=4, **changes)
    config = ImageTokenizerConfig(channels=(8,), norm_groups=4, blocks=1, latent_channels=8, quantizer=quantizer)
    return ImageTokenizer(config)


def collapse(tokenizer: ImageTokenizer) -> None:
    """Leave one vector of the codebook where latents are, and send the others away."""
    book: Any = tokenizer.quantizer.codebook
    table: torch.Tensor = book.embedding if isinstance(book, LearnedCodebook) else book._codebook.embed
    with torch.no_grad():
        rows = table.view(CODES, -1)
        rows[:] = -torch.nn.functional.normalize(torch.ones(4), dim=0) * 30
        rows[0] = -rows[0]
        for name, each in book.named_buffers():
            if name.endswith("embed_avg"):
                each.copy_(table)
            if name.endswith("cluster_size"):
                each.fill_(1e3)


def train(toy: Any, out: Path, tokenizer: ImageTokenizer, **run: Any) -> None:
    settings = {"steps": STEPS, "batch_size": 4, "precision": "float32", "log_every": 1, "checkpoint_every": 8, **run}
    code = train_image_tokenizer(
        tokenizer,
        data=DataConfig(train=toy.plain, num_workers=0),
        losses=ImageObjectiveConfig(size=32),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1),
        run=RunConfig(**settings),
        out=out,
    )
    assert code == 0


def column(out: Path, name: str) -> list[float]:
    with (out / "logs" / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.fixture(autouse=True)
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anymodal.learning.codebook.MEMORY_STEPS", 4)
    monkeypatch.setattr(image_objective, "SETTLED_STEPS", 4)
    monkeypatch.setattr(image_objective, "REVIVE_EVERY", 8)


@pytest.mark.usefixtures("tally")
@pytest.mark.parametrize(("kind", "update"), KINDS)
def test_dead_codes_come_back(
    toy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, update: str
) -> None:
    tokenizer = build(kind, update)
    collapse(tokenizer)
    with caplog.at_level("WARNING", logger="anymodal"):
        train(toy, tmp_path, tokenizer)
    used, perplexity = column(tmp_path, "codebook_used"), column(tmp_path, "codebook_perplexity")
    print(kind, update, [round(each, 2) for each in used], [round(each, 1) for each in perplexity])
    assert len(used) == len(perplexity) == STEPS
    assert used[-1] > 0.5
    assert perplexity[-1] > 0.1 * CODES
    if update == "gradient":  # the others put theirs back at once
        assert used[6] < 0.25
        assert len(re.findall(r"collapses: perplexity \d of 16 codes, 8\d % of them dead", caplog.text)) == 1
        assert "lower optimizer.learning_rate" in caplog.text


def test_codes_stay_dead_where_that_is_wanted(toy: Any, tmp_path: Path) -> None:
    tokenizer = build("vq", "gradient", dead_code_threshold=0)
    collapse(tokenizer)
    train(toy, tmp_path, tokenizer)
    assert column(tmp_path, "codebook_used")[-1] < 0.5


def test_a_run_that_revives_codes_resumes_exactly(toy: Any, tmp_path: Path) -> None:
    made = []
    for name in ("whole", "halves"):
        tokenizer = build("l2-vq", "gradient")
        collapse(tokenizer)
        train(toy, tmp_path / name, tokenizer, steps=20)
        made.append(tokenizer)
    for path in (tmp_path / "halves" / "checkpoints").glob("step-00000020*"):
        path.unlink()  # as if it had been killed behind the sixteenth step, in which codes were revived
    again = build("l2-vq", "gradient")
    train(toy, tmp_path / "halves", again, steps=20)
    assert again.fingerprint == made[0].fingerprint == made[1].fingerprint
    for name in ("codebook_used", "codebook_perplexity", "train_loss"):
        assert column(tmp_path / "halves", name) == column(tmp_path / "whole", name)


@pytest.mark.usefixtures("tally")
@pytest.mark.parametrize(("kind", "update"), KINDS[:3])
def test_a_step_that_is_no_number_leaves_the_codebook_alone(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, update: str
) -> None:
    """A moving average follows the latents in the forward pass, before a gradient could tell that they are none."""
    step = ImageTokenizerObjective.training_step
    states = []

    def spoiled(self: ImageTokenizerObjective, batch: torch.Tensor, number: int) -> Any:
        states.append({name: each.clone() for name, each in self.tokenizer.state_dict().items()})
        return step(self, torch.full_like(batch, torch.nan) if number == 3 else batch, number)

    monkeypatch.setattr(ImageTokenizerObjective, "training_step", spoiled)
    tokenizer = build(kind, update)
    train(toy, tmp_path, tokenizer, steps=6)
    assert all(torch.equal(states[4][name], tensor) for name, tensor in states[3].items())
    assert not all(torch.equal(states[5][name], tensor) for name, tensor in states[4].items())
    assert all(bool(tensor.isfinite().all()) for tensor in tokenizer.state_dict().values())
