import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anymodal.data.config import DataConfig
from anymodal.learning.checkpoints import DurableCheckpointIO
from anymodal.learning.config import ImageObjectiveConfig, OptimizerConfig, RunConfig
from anymodal.learning.image_run import train_image_tokenizer
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig

RUN = RunConfig(steps=4, batch_size=4, precision="float32", log_every=1, validate_every=2, checkpoint_every=2)


VQ = QuantizerConfig(kind="l2-vq", codebook_size=16, codebook_dim=4)
FSQ = QuantizerConfig(kind="fsq", codebook_size=16, levels=(4, 4))


def train(toy: Any, out: Path, run: RunConfig = RUN, quantizer: QuantizerConfig = VQ, **losses: Any) -> ImageTokenizer:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(
        ImageTokenizerConfig(channels=(8,), norm_groups=4, blocks=1, latent_channels=8, quantizer=quantizer)
    )
    code = train_image_tokenizer(
        tokenizer,
        data=DataConfig(train=toy.plain, held_out=toy.plain, num_workers=0),
        losses=ImageObjectiveConfig(size=32, **losses),
        optimizer=OptimizerConfig(warmup_steps=1),
        run=replace(run, validation_steps=2),
        out=out,
    )
    assert code == 0
    return ImageTokenizer.from_pretrained(out / "image_tokenizer")


def column(out: Path, name: str) -> dict[int, str]:
    with (out / "logs" / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): row[name] for row in csv.DictReader(file) if row[name]}


ADVERSARIAL: dict[str, Any] = {"adversarial_weight": 0.1, "adversarial_start": 1}


@pytest.mark.parametrize("losses", [{}, ADVERSARIAL, ADVERSARIAL | {"lecam_weight": 0.3}])
def test_halves_equal_the_whole(toy: Any, tmp_path: Path, losses: dict[str, Any]) -> None:
    whole = train(toy, tmp_path / "whole", **losses)
    losses_of_whole = column(tmp_path / "whole", "train_loss")
    assert sorted(losses_of_whole) == [0, 1, 2, 3]
    assert sorted(column(tmp_path / "whole", "held_out_psnr")) == [1, 3]
    train(toy, tmp_path / "halves", **losses)
    for path in (tmp_path / "halves" / "checkpoints").glob("step-00000004*"):
        path.unlink()  # as if it had been killed in the third step
    halves = train(toy, tmp_path / "halves", **losses)
    assert column(tmp_path / "halves", "train_loss") == losses_of_whole
    assert halves.fingerprint == whole.fingerprint


def test_a_discriminator_begins_when_it_is_told_to(toy: Any, tmp_path: Path) -> None:
    losses = ADVERSARIAL | {"adversarial_start": 2, "lecam_weight": 0.3}
    train(toy, tmp_path, replace(RUN, checkpoint_every=1, steps=2), **losses)
    before = weights(tmp_path, 1), weights(tmp_path, 2)
    train(toy, tmp_path, replace(RUN, checkpoint_every=1, steps=3), **losses)
    after = weights(tmp_path, 3)
    for name, tensor in after.items():
        if name.startswith(("discriminator.", "anchors.")):
            assert torch.equal(before[0][name], before[1][name]), "steps 0 and 1"
            assert not torch.equal(before[1][name], tensor), "step 2"
    assert list(column(tmp_path, "discriminator_loss")) == [2]


def weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    path = out / "checkpoints" / f"step-{step:08d}.ckpt"
    held: dict[str, torch.Tensor] = DurableCheckpointIO().load_checkpoint(path)["state_dict"]
    return held


def test_a_checkpoint_of_an_earlier_version_is_resumed(toy: Any, tmp_path: Path) -> None:
    """Codes are counted from there on, and what holds the discriminator back begins anew."""
    train(toy, tmp_path, replace(RUN, steps=2), **ADVERSARIAL)
    path, io = tmp_path / "checkpoints" / "step-00000002.ckpt", DurableCheckpointIO()
    held = io.load_checkpoint(path)
    del held["state_dict"]["usage.counts"]
    io.save_checkpoint(held, path)
    train(toy, tmp_path, lecam_weight=0.3, **ADVERSARIAL)
    assert sorted(column(tmp_path, "train_loss")) == [0, 1, 2, 3]


def test_a_step_in_pieces_is_refused(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run.accumulate must be 1 for image tokenizers.* got 2; lower run.batch_size"):
        train(toy, tmp_path, replace(RUN, accumulate=2))


def test_a_size_that_does_not_fit_is_refused(toy: Any, tmp_path: Path) -> None:
    tokenizer = ImageTokenizer(ImageTokenizerConfig(channels=(32,), patch=4))
    with pytest.raises(ValueError, match="losses.size must be a multiple of the tokenizer's down-sampling 4, got 30"):
        train_image_tokenizer(
            tokenizer,
            data=DataConfig(train=toy.plain),
            losses=ImageObjectiveConfig(size=30),
            optimizer=OptimizerConfig(),
            run=RUN,
            out=tmp_path,
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a process that may have started CUDA does not fork")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("quantizer", "losses", "tolerance"),
    [
        (FSQ, {}, 1e-5),
        (replace(VQ, dead_code_threshold=0), {}, 1e-5),
        (FSQ, ADVERSARIAL, 2e-2),  # scaled by each process's own gradients
    ],
)
def test_two_processes_take_the_steps_of_one(
    toy: Any, tmp_path: Path, ranks: Any, quantizer: QuantizerConfig, losses: dict[str, Any], tolerance: float
) -> None:
    def run(out: Path) -> int:
        train(toy, out, quantizer=quantizer, **losses)
        return 0

    run(tmp_path / "one")
    assert ranks(2, lambda _: run(tmp_path / "two")) == [0, 0]
    for name in ("train_loss", "held_out_loss", "codebook_perplexity"):
        one, two = (
            {step: float(value) for step, value in column(tmp_path / out, name).items()} for out in ("one", "two")
        )
        assert two == pytest.approx(one, rel=tolerance), name


def test_what_is_for_transformers_is_refused(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run.strategy must be ddp for image tokenizers.* got fsdp"):
        train(toy, tmp_path, replace(RUN, strategy="fsdp"))
    with pytest.raises(ValueError, match="run.compile and run.checkpoint_activations are for transformers"):
        train(toy, tmp_path, replace(RUN, checkpoint_activations=True))


def test_a_folder_never_holds_two_tokenizers(toy: Any, tmp_path: Path) -> None:
    before = train(toy, tmp_path).fingerprint
    with pytest.raises(ValueError, match="holds another run: parts.quantizer.kind was l2-vq, now is fsq"):
        train(toy, tmp_path, quantizer=FSQ)
    with pytest.raises(ValueError, match=r"losses.adversarial_weight was 0.0, now is 0.1; choose another --out"):
        train(toy, tmp_path, replace(RUN, steps=5), **ADVERSARIAL)
    assert train(toy, tmp_path, replace(RUN, log_every=2)).fingerprint == before
