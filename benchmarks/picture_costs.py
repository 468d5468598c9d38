"""What image tokenizers cost, for `costs.py`: learning, and encoding the pictures whose codes a model learns from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from anymodal.configuration import from_dict
from anymodal.learning.config import ImageObjectiveConfig, RunConfig
from anymodal.learning.image_objective import PatchDiscriminator
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig

SEARCHED = ("vq", "l2-vq", "simvq")  # each latent is compared with every vector
MANY = 1_000_000
LEARNING = "steps | pictures a step | TFLOP a step | EFLOP in all | this CPU | one H200"
HEAD = f"| image tokenizer | codes a picture | GFLOP to encode one | {LEARNING} | "


def _vqgan(channels: tuple[int, ...], codes: int, width: int, **more: Any) -> ImageTokenizerConfig:
    return ImageTokenizerConfig(
        channels=channels, quantizer=QuantizerConfig(kind="vq", codebook_size=codes, codebook_dim=width),
        **{"architecture": "diffusers", "latent_channels": 256, **more},
    )  # fmt: skip


VQ_16 = _vqgan((128, 128, 256, 256, 512), 16_384, 8, attention_stages=(4,))
MOVQ = {"architecture": "movq", "latent_channels": 4, "attention_stages": (3,), "temporal_down_sampling": 4}
PUBLISHED = {
    "LlamaGen's VQ-16": (VQ_16, 256),
    "the same, in Janus": (VQ_16, 384),
    "Chameleon's VQGAN": (_vqgan((128, 128, 256, 256, 512), 8192, 256), 512),
    "Emu3's MoVQ": (_vqgan((256, 512, 512, 1024), 32_768, 4, **MOVQ), 720),
}
"""Shapes of published image tokenizers, with the side in pixels of their models' pictures."""


@dataclass(frozen=True)
class Picture:
    """Operations of one picture forward: to find its codes, to draw them, and to judge a picture."""

    codes: int
    encode: int
    decode: int
    judge: int

    @classmethod
    def of(cls, config: ImageTokenizerConfig, size: int) -> "Picture":
        """Count a square picture of `size` pixels a side, by the shapes of all products; nothing is computed."""
        with torch.device("meta"):
            tokenizer, pixels = ImageTokenizer(config), torch.empty(1, 3, size, size)
            side = size // config.down_sampling
            quantizer, latents = tokenizer.quantizer, torch.empty(1, config.latent_channels, side, side)
            judge = _counted(PatchDiscriminator(), pixels)
        found = config.quantizer
        searched = 2 * found.codebook_size * found.codebook_dim if found.kind in SEARCHED else 0
        narrow, wide = (
            2 * sum(each.numel() for each in part.parameters() if each.ndim > 1)
            for part in (quantizer.project_in, quantizer.project_out)
        )
        return cls(
            codes=side**2,
            encode=_counted(tokenizer.encoder, pixels) + side**2 * (narrow + searched),
            decode=_counted(tokenizer.decoder, latents) + side**2 * wide,
            judge=judge,
        )

    def learning(self, losses: ImageObjectiveConfig, run: RunConfig) -> float:
        """Return the operations of a picture in a step: what learns costs thrice its way forward.

        A discriminator, from its start on, judges thrice: the drawn picture for the tokenizer, then both for itself.

        Raises:
            ValueError: there is a perceptual loss, whose network is not counted.
        """
        if losses.perceptual_weight:
            raise ValueError(f"perceptual losses are not counted, got {losses.perceptual_weight}; add their network.")
        coding = (3 if losses.trains == "all" else 1) * self.encode + 3 * self.decode
        share = max(0.0, 1 - losses.adversarial_start / run.steps) if losses.adversarial_weight else 0.0
        return coding + share * 9 * self.judge


def _counted(module: nn.Module, given: torch.Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(given)
    return counter.get_total_flops()


def table(recipes: Sequence[Path], cpu: float, gpu: float, span: Callable[[float], str]) -> str:
    """Return the table of the image tokenizers that recipes train, and of published ones; rates as they are reached."""
    head = HEAD + f"{MANY:,} pictures to codes, this CPU | one H200 |"
    dashes = "| --- |" + " ---: |" * (head.count("|") - 2)
    return "\n".join([head, dashes, *_rows(recipes, cpu, gpu, span)])


def _rows(recipes: Sequence[Path], cpu: float, gpu: float, span: Callable[[float], str]) -> Iterator[str]:
    for path in recipes:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        losses = from_dict(ImageObjectiveConfig, data["losses"], "losses")
        run, config = (
            from_dict(RunConfig, data["run"], "run"),
            from_dict(ImageTokenizerConfig, shape_of(path), "tokenizer"),
        )
        picture = Picture.of(config, losses.size)
        step = run.batch_size * picture.learning(losses, run)
        whole = step * run.steps
        learns = f"{run.steps:,} | {run.batch_size:,} | {step / 1e12:,.3g} | {whole / 1e18:,.3g} | "
        yield _row(f"`{path.parent.name}/{path.stem}`", picture, learns + f"{span(whole / cpu)} | {span(whole / gpu)}",
                   [span(MANY * picture.encode / rate) for rate in (cpu, gpu)])  # fmt: skip
    for name, (config, size) in PUBLISHED.items():
        picture = Picture.of(config, size)
        yield _row(name, picture, "| | | | |", [span(MANY * picture.encode / rate) for rate in (cpu, gpu)])


def _row(name: str, picture: Picture, learns: str, encodes: Sequence[str]) -> str:
    return f"| {name} | {picture.codes:,} | {picture.encode / 1e9:,.3g} | {learns} | {' | '.join(encodes)} |"


def shape_of(path: Path) -> dict[str, Any]:
    """Return the shape of the image tokenizer of a recipe, which may go on from that of another one."""
    recipe: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "tokenizer" in recipe:
        shape: dict[str, Any] = recipe["tokenizer"]
        return shape
    others = {each: yaml.safe_load(each.read_text(encoding="utf-8")) for each in path.parent.glob("*.yaml")}
    start = next(each for each, other in others.items() if f"{other['out']}/image_tokenizer" == recipe["start"])
    return shape_of(start)
