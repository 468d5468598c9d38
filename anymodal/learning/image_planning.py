"""What a run of an image tokenizer would do, said before it does it, and its first batch as it would be drawn now."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from anymodal.data.config import DataConfig
from anymodal.data.pictures import scaled, to_image
from anymodal.data.sheet import contact_sheet
from anymodal.learning.batches import PICTURE_FIT, PictureBatches
from anymodal.learning.config import ImageObjectiveConfig, OptimizerConfig, RunConfig
from anymodal.learning.image_objective import PatchDiscriminator
from anymodal.learning.image_run import check_fits, picture_batches
from anymodal.learning.optimizer import kind_of, trainable
from anymodal.learning.planning import FLOAT, Memory, told_parts
from anymodal.tokens.image import ImageTokenizer

MOST_PICTURES = 16
Features = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class PicturePlan:
    """What a run would do: `parts` and `epochs` are as those of `Plan`, `pictures` and `codes` are of a step."""

    parts: dict[str, tuple[int, int]]
    memory: Memory
    steps: int
    pictures: int
    epochs: dict[str, float]
    codes: int

    def __str__(self) -> str:
        """Write the plan for a reader."""
        epochs = ", ".join(f"{name} {steps:,.1f} steps" for name, steps in self.epochs.items())
        steps = f"steps: {self.steps:,} of {self.pictures:,} pictures; an epoch is: {epochs}"
        return "\n".join([*told_parts(self.parts), str(self.memory), steps, f"codes a step: {self.codes:,}"])


def dry_run(  # noqa: PLR0913  (one argument a section of the configuration)
    tokenizer: ImageTokenizer,
    *,
    data: DataConfig,
    losses: ImageObjectiveConfig,
    optimizer: OptimizerConfig,
    run: RunConfig,
    out: Path,
    features: Features | None = None,
) -> str:
    """Say what a run would do and write its first pictures, above what is drawn of their codes, to `first_batch.png`.

    Nothing is trained.

    Raises:
        ValueError: the size or the run does not fit the tokenizer, or the shards hold too many bad pictures.
    """
    check_fits(tokenizer, losses, run)
    if losses.trains == "decoder":
        tokenizer.keep_codes()
    batches = picture_batches(data, data.train, losses.size, run)
    real = scaled(batches[0], PICTURE_FIT.scale)
    plan = plan_of(tokenizer, batches, real, losses=losses, optimizer=optimizer, run=run, features=features)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "first_batch.png"
    redrawn(tokenizer, real[:MOST_PICTURES]).save(path)
    return f"{plan}\nfirst batch: {path}"


def redrawn(tokenizer: ImageTokenizer, real: Float[Tensor, "b 3 h w"]) -> Image.Image:
    """Lay pictures out above what is drawn of their codes."""
    drawn = tokenizer.decode(tokenizer.encode(real))
    return contact_sheet([to_image(each) for each in (*real, *drawn)], columns=len(real))


def plan_of(  # noqa: PLR0913  (one argument a section of the configuration)
    tokenizer: ImageTokenizer,
    batches: PictureBatches,
    real: Float[Tensor, "b 3 h w"],
    *,
    losses: ImageObjectiveConfig,
    optimizer: OptimizerConfig,
    run: RunConfig,
    features: Features | None = None,
) -> PicturePlan:
    """Say what a run would do, of which `real` is the first batch."""
    parts: dict[str, nn.Module] = {name: getattr(tokenizer, name) for name in ("encoder", "quantizer", "decoder")}
    if losses.adversarial_weight:
        parts["discriminator"] = PatchDiscriminator()
    counts = {
        name: (_numbers(part), sum(each.parameter.numel() for each in trainable(part))) for name, part in parts.items()
    }
    learn = sum(own for _, own in counts.values())
    trained = [each for part in parts.values() for each in trainable(part)]
    matrices = sum(each.parameter.numel() for each in trained if kind_of(each, optimizer) == "matrices")
    critic = parts.get("discriminator")
    kept = activation_bytes(tokenizer, real[:1], losses, critic=critic, features=features)
    sizes = [sum(part.shard_sizes) for part in batches.parts]
    shares = [batches.order.count(number, run.steps) / run.steps for number in range(len(sizes))]
    names = [source.name for source in batches.order.sources]
    return PicturePlan(
        parts=counts,
        memory=Memory(
            weights=FLOAT * sum(count for count, _ in counts.values()) * (2 if run.ema_decay else 1),
            gradients=FLOAT * learn,
            optimizer=FLOAT * (2 * learn - matrices),  # Muon keeps one average, AdamW two
            activations=run.batch_size * kept,
        ),
        steps=run.steps,
        pictures=run.batch_size,
        epochs={name: size / share for name, size, share in zip(names, sizes, shares, strict=True) if share},
        codes=run.batch_size * (losses.size // tokenizer.config.down_sampling) ** 2,
    )


def activation_bytes(
    tokenizer: ImageTokenizer,
    pictures: Float[Tensor, "b 3 h w"],
    losses: ImageObjectiveConfig,
    *,
    critic: nn.Module | None = None,
    features: Features | None = None,
) -> int:
    """Return the bytes that a step in float32 keeps of pictures for its way back, as passing them shows.

    A codebook that is a moving average would learn of them: they are passed through a copy.
    """
    passed = copy.deepcopy(tokenizer).train()
    modules = nn.ModuleList([passed, *([] if critic is None else [critic])])
    own = {each.untyped_storage().data_ptr() for each in (*modules.parameters(), *modules.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        drawn = (passed(pictures) if losses.trains == "all" else passed.redraw(pictures)).pixels
        graphs = [drawn, drawn - pictures]
        if losses.perceptual_weight and features is not None:
            graphs += features(drawn)
        if critic is not None:
            graphs.append(critic(drawn))
        held = [graph.square().mean() for graph in graphs]
    assert all(each.requires_grad for each in held), "what is kept is kept for a gradient"
    return sum(kept.values())


def _numbers(part: nn.Module) -> int:
    return sum(each.numel() for each in (*part.parameters(), *part.buffers()))
