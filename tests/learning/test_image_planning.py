from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from anymodal.data.config import DataConfig
from anymodal.learning.config import ImageObjectiveConfig, OptimizerConfig, RunConfig
from anymodal.learning.image_objective import PatchDiscriminator
from anymodal.learning.image_planning import activation_bytes, dry_run, plan_of
from anymodal.learning.image_run import picture_batches
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig

RUN, OPTIMIZER = RunConfig(steps=12, batch_size=4, precision="float32"), OptimizerConfig()
VQ = QuantizerConfig(kind="l2-vq", codebook_size=16, codebook_dim=4)


def build() -> ImageTokenizer:
    torch.manual_seed(0)
    shape = ImageTokenizerConfig(channels=(8, 16), norm_groups=4, blocks=1, latent_channels=8, quantizer=VQ)
    return ImageTokenizer(shape)


@pytest.mark.parametrize("trains", ["all", "decoder"])
@pytest.mark.parametrize("adversarial", [0.0, 0.5])
def test_counts_what_a_run_would_do(toy: Any, trains: Any, adversarial: float) -> None:
    tokenizer = build()
    if trains == "decoder":
        tokenizer.keep_codes()
    losses = ImageObjectiveConfig(size=32, trains=trains, adversarial_weight=adversarial)
    data = DataConfig(train=f"{toy.plain}/000000.tar::{toy.plain}/000001.tar", ratios=(3.0, 1.0), num_workers=0)
    batches = picture_batches(data, data.train, 32, RUN)
    real = torch.zeros(4, 3, 32, 32)
    plan = plan_of(tokenizer, batches, real, losses=losses, optimizer=OPTIMIZER, run=RUN)
    judge = sum(each.numel() for each in PatchDiscriminator().parameters()) if adversarial else 0
    learning = sum(each.numel() for each in tokenizer.parameters() if each.requires_grad) + judge
    assert sum(own for _, own in plan.parts.values()) == learning
    assert (plan.parts["encoder"][1] == 0) == (trains == "decoder")
    assert plan.memory.gradients == 4 * learning
    assert plan.memory.optimizer == 8 * learning
    assert plan.epochs == {"pictures 0": 12 / 3, "pictures 1": 12 / 1}, "12 samples each"
    assert plan.codes == 4 * 4 * 4
    assert len(batches.parts) == 2


@pytest.mark.parametrize("critic", [None, PatchDiscriminator(width=8)])
def test_activations_are_as_many_as_are_kept(critic: Any) -> None:
    tokenizer, losses = build(), ImageObjectiveConfig(size=32)
    codebook = {name: each.clone() for name, each in tokenizer.state_dict().items()}
    pictures = torch.rand(8, 3, 32, 32) * 2 - 1
    one = activation_bytes(tokenizer, pictures[:1], losses, critic=critic)
    assert activation_bytes(tokenizer, pictures, losses, critic=critic) == pytest.approx(8 * one, rel=0.1)
    tokenizer.keep_codes()
    frozen = activation_bytes(tokenizer, pictures[:1], ImageObjectiveConfig(size=32, trains="decoder"), critic=critic)
    assert frozen < one
    assert all(torch.equal(each, codebook[name]) for name, each in tokenizer.state_dict().items())


def test_leaves_nothing_but_the_picture(toy: Any, tmp_path: Path) -> None:
    tokenizer, out = build(), tmp_path / "run"
    before = {name: each.clone() for name, each in tokenizer.state_dict().items()}
    data, losses = DataConfig(train=toy.plain, num_workers=0), ImageObjectiveConfig(size=32)
    said = dry_run(tokenizer, data=data, losses=losses, optimizer=OPTIMIZER, run=RUN, out=out)
    assert [path.name for path in out.iterdir()] == ["first_batch.png"]
    with Image.open(out / "first_batch.png") as picture:
        assert picture.size == (4 * 36 + 4, 2 * 36 + 4), "four pictures above four reconstructions"
    assert all(torch.equal(each, before[name]) for name, each in tokenizer.state_dict().items())
    assert "steps: 12 of 4 pictures; an epoch is: pictures 6.0 steps" in said
    assert said.endswith(f"first batch: {out / 'first_batch.png'}")
    with pytest.raises(ValueError, match="multiple of the tokenizer's down-sampling 8, got 30"):
        dry_run(tokenizer, data=data, losses=ImageObjectiveConfig(size=30), optimizer=OPTIMIZER, run=RUN, out=out)
