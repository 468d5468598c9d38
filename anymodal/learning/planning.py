"""What a run would do, said before it does it: parts, memory, epochs, and its first batch as a picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from anymodal.data.config import DataConfig
from anymodal.data.pictures import to_image
from anymodal.data.sheet import contact_sheet
from anymodal.learning.batches import DocumentBatches
from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
from anymodal.learning.stages import trained_of
from anymodal.learning.unified_run import document_batches
from anymodal.model.config import TransformerConfig, UnderstandingConfig
from anymodal.model.folder import ModelFolder
from anymodal.model.loss import CHUNK_LOGITS
from anymodal.model.parts import parts_of
from anymodal.model.unified import AnyModal
from anymodal.tokens.batch import IGNORE, PADDING, Batch
from anymodal.tokens.parts import Codes

FLOAT = 4
BATCHES = 4
MOST_DOCUMENTS = 32
MOST_LETTERS = 160
TILE = 64


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes, in float32, on one device that holds all weights; an average of them counts, too."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        """Write it for a reader."""
        named = ("weights", "gradients", "optimizer", "activations")
        sizes = ", ".join(f"{name} {getattr(self, name) / 1e6:,.0f} MB" for name in named)
        return f"memory: about {self.total / 1e6:,.0f} MB in float32 ({sizes})"


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    `parts` holds the weights and the trained weights of each part, `epochs` the steps in which a task sees every sample
    once, `tokens` and `padding` what a step has on average, padding as a share of all places.
    """

    parts: dict[str, tuple[int, int]]
    memory: Memory
    steps: int
    documents: int
    epochs: dict[str, float]
    tokens: float
    padding: float

    def __str__(self) -> str:
        """Write the plan for a reader."""
        lines = [*told_parts(self.parts), str(self.memory)]
        epochs = ", ".join(f"{task} {steps:,.1f} steps" for task, steps in self.epochs.items())
        lines.append(f"steps: {self.steps:,} of {self.documents:,} documents; an epoch is: {epochs}")
        lines.append(f"tokens a step: {self.tokens:,.0f}, beside {self.padding:.1%} padding")
        return "\n".join(lines)


def dry_run(
    parts: ModelFolder, *, data: DataConfig, stage: StageConfig, optimizer: OptimizerConfig, run: RunConfig, out: Path
) -> str:
    """Say what a run would do and write its first batch to `out/first_batch.png`; nothing is trained.

    Raises:
        ValueError: the stage or the shards do not fit the model.
    """
    batches = document_batches(parts, data, data.train, stage, run)
    plan = plan_of(parts, batches, stage=stage, optimizer=optimizer, run=run)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "first_batch.png"
    picture_of(parts, batches[0]).save(path)
    return f"{plan}\nfirst batch: {path}"


def plan_of(
    parts: ModelFolder, batches: DocumentBatches, *, stage: StageConfig, optimizer: OptimizerConfig, run: RunConfig
) -> Plan:
    """Say what a run would do; its first batches are made, nothing is trained.

    Raises:
        ValueError: the stage or the shards do not fit the model.
    """
    trained = {each.name: each.parameter for each in trained_of(parts.model, stage)}
    learning = stage.trains or tuple(parts_of(parts.model))
    counts = {}
    for name, pieces in parts_of(parts.model).items():
        count = sum(piece.values.numel() for piece in pieces)
        counts[name] = (count, count if name in learning else 0)
    first = [batches[step] for step in range(min(BATCHES, run.steps))]
    places, real = (sum(each) for each in zip(*((b.ids.numel(), b.num_tokens) for b in first), strict=True))
    matrices = sum(each.numel() for name, each in trained.items() if each.ndim > 1 and "blocks." in name)
    learn = sum(own for _, own in counts.values())
    states = 2 * learn - (matrices if optimizer.name == "muon" else 0)  # Muon keeps one average, AdamW two
    gradients = sum(each.numel() for name, each in parts.model.named_parameters() if name in trained)
    sizes = {each.source.name: sum(each.part.shard_sizes) for each in batches.sources}
    shares = [batches.order.count(number, run.steps) / run.steps for number in range(len(sizes))]
    return Plan(
        parts=counts,
        memory=Memory(
            weights=FLOAT * sum(count for count, _ in counts.values()) * (2 if run.ema_decay else 1),
            gradients=FLOAT * gradients,
            optimizer=FLOAT * states,
            activations=max(activation_bytes(parts.model, each, run) for each in first),
        ),
        steps=run.steps,
        documents=run.batch_size,
        epochs={name: size / share for (name, size), share in zip(sizes.items(), shares, strict=True) if share},
        tokens=real / len(first),
        padding=1 - real / places,
    )


def activation_bytes(model: AnyModal, batch: Batch, run: RunConfig) -> int:
    """Estimate the bytes that a step keeps for its way back, in float32, of a model all of which learns.

    A token leaves in a block what its norms, projections and products need: 6 widths, 5 of its heads and 4 of the
    hidden layer; in a vision block about as much. Beside them stands a chunk of logits.
    """
    shape, look = model.config.transformer, model.config.understanding
    tokens = batch.ids.numel() / run.accumulate
    block = _block_floats(shape)
    blocks = shape.depth * shape.dim + block if run.checkpoint_activations else shape.depth * block
    floats = tokens * (blocks + 4 * shape.dim)
    if look is not None and batch.look_pixels is not None:
        patches = (look.image_size // look.patch_size) ** 2
        floats += len(batch.look_pixels) / run.accumulate * patches * _vision_floats(look)
    targets = int((batch.targets != IGNORE).sum()) / run.accumulate
    return round(FLOAT * (floats + 2 * targets * shape.dim + min(CHUNK_LOGITS, targets * model.vocabulary.size)))


def _block_floats(shape: TransformerConfig) -> int:
    attention = (3 * shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    return 6 * shape.dim + attention + 4 * shape.hidden_dim


def _vision_floats(look: UnderstandingConfig) -> int:
    return look.depth * (9 * look.dim + 2 * look.hidden_dim) + 2 * look.dim


def picture_of(parts: ModelFolder, batch: Batch) -> Image.Image:
    """Draw what a batch holds: the pictures that are looked at and, decoded, those that are codes, over their texts.

    A document without a picture is a blank tile.
    """
    encoder, flat = parts.encoder(), batch.ids.flatten()
    documents = torch.arange(len(batch.ids)).repeat_interleave(batch.ids.shape[1])
    documents = documents if batch.documents is None else batch.documents.flatten()
    looks: dict[int, list[Image.Image]] = {}
    if batch.look_pixels is not None and batch.look_index is not None:
        for pixels, index in zip(batch.look_pixels, batch.look_index, strict=True):
            looks.setdefault(int(documents[index[0]]), []).append(to_image(pixels))
    tiles, captions = list[Image.Image](), list[str]()
    for number in documents[documents != PADDING].unique()[:MOST_DOCUMENTS]:
        pieces = encoder.decode(flat[documents == number])
        codes = [piece.picture for piece in pieces if isinstance(piece, Codes)]
        with torch.no_grad():
            drawn = [to_image(parts.image_tokenizer.decode(torch.as_tensor(each)[None])[0]) for each in codes]
        pictures = [*looks.get(int(number), []), *drawn] or [Image.new("RGB", (TILE, TILE), "white")]
        text = " | ".join(piece.strip() for piece in pieces if isinstance(piece, str))
        tiles += pictures
        captions += [text[:MOST_LETTERS]] + [""] * (len(pictures) - 1)
    return contact_sheet(tiles, captions=captions, scale=2)


def told_parts(parts: Mapping[str, tuple[int, int]]) -> list[str]:
    """Write a line for every part, of its weights and those that learn, and one for all."""
    held, learn = (sum(column) for column in zip(*parts.values(), strict=True))
    lines = [f"{name:<20} {count:>15,}  {_learns(count, own)}" for name, (count, own) in parts.items()]
    return [*lines, f"{'all parts':<20} {held:>15,}  {learn:,} learn ({learn / held:.1%})"]


def _learns(count: int, own: int) -> str:
    if not own:
        return "stays"
    return "learns" if own == count else f"{own:,} learn"
