"""Configuration of training; free of torch."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (arXiv:1711.05101), or Muon (arXiv:2502.16982) for the matrices of the transformer and AdamW for the rest.

    The rate rises linearly for `warmup_steps`, then falls as a cosine to `final_rate` of its height, or stays. With
    Muon the matrices learn at `learning_rate` scaled to AdamW's update size (arXiv:2502.16982, equation 4).
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    gradient_clip: float = 1.0
    warmup_steps: int = 50
    schedule: Literal["cosine", "constant"] = "cosine"
    final_rate: float = 0.05

    def __post_init__(self) -> None:
        """Check the rate."""
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}.")


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Share of each task in every step; they need not add up to one.

    Args:
        draw: caption to codes.
        answer: picture and question to answer.
        describe: picture to caption.
        text: captions alone.
        chat: the turns of a sample's json.
    """

    draw: float = 0.5
    answer: float = 0.4
    describe: float = 0.0
    text: float = 0.1
    chat: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long a run is and what it writes on its way.

    Args:
        steps: optimizer steps.
        batch_size: documents (or pictures) a step, over all processes.
        accumulate: pieces in which the rows of a step are computed, one after the other: less memory, the same step.
        checkpoint_activations: keep only what goes into each block and compute the rest again backwards: a quarter more
            time, far less memory, the same step.
        compile: compile the blocks when training starts, which takes a minute; steps are the same but for rounding, and
            dropout draws other numbers. Checkpoints of both kinds of run are interchangeable.
        precision: "bf16" computes matrix products in bfloat16, "float32" everything in single precision, "auto" takes
            bf16 where the processor has instructions for it (emulated, it is hundreds of times slower).
        seed: of weights, order and dropout.
        log_every: steps between lines of the logs.
        validate_every: steps between validation losses; 0 for never.
        validation_steps: batches of one validation.
        sample_every: steps between sample pictures and answers; 0 for never.
        checkpoint_every: steps between checkpoints.
        ema_decay: of the moving average of the weights, which is then what is validated and saved; 0 for none.
        devices: processes that train together on this machine, each on a GPU of its own where there are GPUs; torchrun
            and SLURM say it themselves.
        strategy: how processes share the work: "ddp" keeps all weights in each, "fsdp" spreads weights, gradients and
            optimizer over them (FSDP2), for models that one device cannot hold.
        peer_timeout_s: seconds that processes wait for each other, also while the first one writes the best model or
            draws what `sample_every` asks for; then the run ends, as one of them has died or hangs.
    """

    steps: int = 1000
    batch_size: int = 64
    accumulate: int = 1
    checkpoint_activations: bool = False
    compile: bool = False
    precision: Literal["auto", "bf16", "float32"] = "auto"
    seed: int = 0
    log_every: int = 10
    validate_every: int = 200
    validation_steps: int = 8
    sample_every: int = 0
    checkpoint_every: int = 200
    ema_decay: float = 0.0
    devices: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    peer_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        """Check the counts, the average and the timeout."""
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}; 0.999 averages about 1000 steps.")
        if not 0 < self.peer_timeout_s < float("inf"):
            raise ValueError(f"peer_timeout_s must be a number of seconds above 0, got {self.peer_timeout_s}.")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What a stage of the unified model learns.

    Parts are `understanding` (the vision encoder), `connector`, `transformer`, `text_embedding`, `text_head`,
    `image_embedding` (with its aligner), `image_head` and `place_embedding`, as far as the model has them. Where heads
    are shared, the four embeddings and heads are rows of one matrix each. A tied head is part of its embedding.

    Args:
        trains: parts that learn, the others stay as they are, to the bit; none named means all.
        rates: factor on the learning rate of a part, 1 where it is not named.
        ratios: share of every task in every step.
        seq_len: tokens a packed row.
        label_prompt: learn to write the text of prompts, too.
        text_weight: weight of the text loss.
        image_weight: weight of the loss on image codes (Emu3: 0.5).
        z_loss: weight of the squared log partition (Chameleon: 1e-5).
        prompt_dropout: share of drawings whose prompt is left empty, for guidance.
        code_noise: largest share of a drawing's codes that are read as others; each drawing draws its own below it.
        questions_per_picture: questions asked in one answering document.
    """

    trains: tuple[str, ...] = ()
    rates: dict[str, float] = field(default_factory=dict)
    ratios: Ratios = Ratios()
    seq_len: int = 1024
    label_prompt: bool = False
    text_weight: float = 1.0
    image_weight: float = 1.0
    z_loss: float = 1e-5
    prompt_dropout: float = 0.1
    code_noise: float = 0.0
    questions_per_picture: int = 2

    def __post_init__(self) -> None:
        """Check rates and weights."""
        for part, rate in self.rates.items():
            if rate <= 0:
                raise ValueError(f"the rate of a part must be positive, got {part}: {rate}; leave it out of trains.")
            if self.trains and part not in self.trains:
                raise ValueError(f"rates are of parts that train, {part!r} does not; add it to trains.")
        for name in ("text_weight", "image_weight", "z_loss"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class ImageObjectiveConfig:
    """Losses of an image tokenizer (VQGAN, arXiv:2012.09841).

    Args:
        size: side in pixels of the training pictures.
        trains: all of a tokenizer, or the decoder alone, so that pictures keep their codes.
        l1_weight: weight of the absolute error.
        l2_weight: weight of the squared error.
        codebook_weight: weight of the quantizer's own loss.
        perceptual_weight: weight of the feature distance; needs the `test` extra's EfficientNet.
        adversarial_weight: weight of the patch discriminator, scaled by the ratio of last-layer gradients.
        adversarial_start: step at which the discriminator begins to learn, and the tokenizer to heed it (`disc_start`).
        lecam_weight: weight of what holds the discriminator back where pictures are few (LeCAM, arXiv:2104.03310).
    """

    size: int = 64
    trains: Literal["all", "decoder"] = "all"
    l1_weight: float = 1.0
    l2_weight: float = 1.0
    codebook_weight: float = 1.0
    perceptual_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 1000
    lecam_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check that there is a discriminator to hold back."""
        if self.lecam_weight and not self.adversarial_weight:
            raise ValueError(
                f"lecam_weight is of the discriminator, got {self.lecam_weight} without one; set adversarial_weight, "
                "or leave it out."
            )
