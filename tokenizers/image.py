r"""Train an image tokenizer on the pictures of shards.

    anymodal tokenizers image --config configs/emoji/image_tokenizer.yaml
    anymodal tokenizers image --data.train "data/train-{000000..000003}.tar" --out runs/tokenizer --losses.size 256
    anymodal tokenizers image --start runs/tokenizer/image_tokenizer --losses.trains decoder --data.train data/mine \
        --out runs/redrawn

With --start a trained one goes on, and with --losses.trains decoder its pictures keep their codes: shards of codes and
models that learned from them stay good.

The best tokenizer (by its loss on --data.held_out, where given) is in OUT/image_tokenizer; checkpoints, logs and
pictures (real above reconstructed) stand beside it. Ctrl-C saves; the same command resumes.
"""

from pathlib import Path
from typing import Any

from anymodal.data.config import DataConfig
from anymodal.learning.config import ImageObjectiveConfig, OptimizerConfig, RunConfig
from anymodal.tokens.image_config import ImageTokenizerConfig


def main(
    *,
    out: Path,
    data: DataConfig,
    start: Path | None = None,
    tokenizer: ImageTokenizerConfig = ImageTokenizerConfig(),
    losses: ImageObjectiveConfig = ImageObjectiveConfig(),
    optimizer: OptimizerConfig = OptimizerConfig(),
    run: RunConfig = RunConfig(),
    dry_run: bool = False,
) -> int:
    """Train an image tokenizer.

    Args:
        out: folder of the run.
        data: shards to train on.
        start: folder of the image tokenizer to start from, which brings its shape; null starts from nothing.
        tokenizer: shape of the tokenizer.
        losses: what it minimises.
        optimizer: how it learns.
        run: how long it trains and what it writes on its way.
        dry_run: say what the run would do (parts, memory, epochs), write OUT/first_batch.png, train nothing.
    """
    import torch

    from anymodal.data.opening import open_shards
    from anymodal.data.samples import pixels_of
    from anymodal.learning.distributed import is_first
    from anymodal.learning.image_planning import dry_run as plan
    from anymodal.learning.image_planning import redrawn
    from anymodal.learning.image_run import train_image_tokenizer
    from anymodal.tokens.image import ImageTokenizer

    _check(start, tokenizer, losses)
    torch.manual_seed(run.seed)
    built = ImageTokenizer(tokenizer) if start is None else ImageTokenizer.from_pretrained(start).train()
    features = None
    if losses.perceptual_weight:
        from anymodal.scoring.features import feature_maps

        features = feature_maps()
    sections: dict[str, Any] = {"data": data, "losses": losses, "optimizer": optimizer, "run": run}
    if dry_run:
        print(plan(built, **sections, out=out, features=features))
        return 0
    shown = open_shards(data, data.held_out or data.train, needs=("picture",))
    real = torch.stack([pixels_of(shown.read(i), losses.size, "crop") for i in range(min(12, len(shown)))])

    def show(step: int) -> None:
        (out / "samples").mkdir(parents=True, exist_ok=True)
        redrawn(built, real).save(out / "samples" / f"step-{step:08d}.png")

    base, folder = "" if start is None else str(start), out / "image_tokenizer"
    code = train_image_tokenizer(built, **sections, out=out, base=base, features=features, show=show)
    if is_first() and code:
        print(f"{out}: stopped; the same command resumes")
    elif is_first():
        print(f"{folder}: fingerprint {ImageTokenizer.from_pretrained(folder).fingerprint}")
    return code


def _check(start: Path | None, tokenizer: ImageTokenizerConfig, losses: ImageObjectiveConfig) -> None:
    if start is not None and tokenizer != ImageTokenizerConfig():
        raise ValueError(f"the shape of the tokenizer comes from --start {start}; leave the options tokenizer.* out.")
    if start is None and losses.trains == "decoder":
        raise ValueError("losses.trains decoder needs a trained tokenizer whose codes stay; name it with --start.")
