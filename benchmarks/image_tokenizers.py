"""Compare quantizers and grids of image tokenizers on equal budgets, and the drawings that each leads to.

    python benchmarks/image_tokenizers.py --work runs/image_tokenizers --readme

Every tokenizer sees the same pictures (all embedded emoji that train, and scenes of every kind) in as many steps, and
is scored on emoji and scenes that were held out. A unified model then learns to draw on its codes, in as many steps
for each, and is scored as `designs.py` does. 144 codes do not divide 64 pixels: there pictures are enlarged to 72.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from figures import publish
from jaxtyping import Float
from provenance import claim, provenance
from torch import Tensor
from trials import ROOT, SCENES, drawing_scores, encode_scenes, held_out_scenes, kept, learn, program, write_scenes

import anymodal
from anymodal.data.emoji import emoji_samples
from anymodal.data.pictures import decode_picture, to_pixels
from anymodal.data.samples import picture_bytes
from anymodal.data.scenes import scene_samples
from anymodal.data.shards import Sample
from anymodal.scoring.reconstruction import measure
from anymodal.tokens.image import ImageTokenizer

PICTURES, SCORED_SCENES = 6000, 200
SEQ_LEN = 320
FSQ = {"kind": "fsq", "codebook_size": 4096, "codebook_dim": 4, "levels": "[8,8,8,8]"}
COARSE = {"channels": "[64,192]", "blocks": 1, "patch": 4}
TRIALS: dict[str, dict[str, Any]] = {
    "FSQ, 64 codes": {"size": 64, "quantizer": FSQ, **COARSE},
    "VQ, 64 codes": {"size": 64, "quantizer": {"kind": "vq", "codebook_size": 4096, "codebook_dim": 8}, **COARSE},
    "l2-VQ, 64 codes": {"size": 64, "quantizer": {"kind": "l2-vq", "codebook_size": 4096, "codebook_dim": 8}, **COARSE},
    "LFQ, 64 codes": {"size": 64, "quantizer": {"kind": "lfq", "codebook_size": 4096, "codebook_dim": 12}, **COARSE},
    "SimVQ, 64 codes": {
        "size": 64,
        "quantizer": {"kind": "simvq", "codebook_size": 4096, "codebook_dim": 32},
        **COARSE,
    },
    "FSQ, 144 codes": {"size": 72, "quantizer": FSQ, "channels": "[48,144]", "blocks": 1, "patch": 3},
    "FSQ, 256 codes": {"size": 64, "quantizer": FSQ, "channels": "[96]", "blocks": 2, "patch": 4},
}


def write_pictures(work: Path) -> None:
    """Pack what image tokenizers learn from."""
    for split, scenes in (("train", PICTURES), ("held-out", SCORED_SCENES)):
        out = f"pictures/{split}"
        if not (work / out).exists():
            program(
                work, "train", "shards", "--emoji", "all", "--split", split, "--scenes", str(scenes),
                "--seed", "1", "--out", out,
            )  # fmt: skip


def words_of(group: str, options: dict[str, Any]) -> Iterator[str]:
    """Write nested options as the command line takes them."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from words_of(f"{group}.{name}", value)
        else:
            yield from (f"--{group}.{name}", str(value))


def train_tokenizer(
    work: Path, folder: str, shape: dict[str, Any], steps: int, losses: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Train one image tokenizer, with other losses than the defaults if given."""
    size = shape["size"]
    options = {name: value for name, value in shape.items() if name != "size"}
    write_pictures(work)
    seconds = program(
        work, "tokenizers", "image", "--out", folder, "--data.train", "pictures/train",
        "--data.held_out", "pictures/held-out", "--data.num_workers", "0", *words_of("tokenizer", options),
        *words_of("losses", {"size": size, **(losses or {})}),
        "--optimizer.learning_rate", "0.002", "--optimizer.weight_decay", "0.01",
        "--optimizer.warmup_steps", "30", "--optimizer.final_rate", "0.02", "--run.steps", str(steps),
        "--run.batch_size", "32", "--run.validate_every", str(steps), "--run.validation_steps", "4",
        "--run.checkpoint_every", "100", "--run.log_every", "10",
    )  # fmt: skip
    return {"seconds": seconds, "pictures": 32 * steps, "size": size}


def reconstruction(work: Path, folder: str, size: int) -> dict[str, Any]:
    """Score a trained tokenizer on emoji and scenes that it never saw, at the size that it learned."""
    tokenizer = ImageTokenizer.from_pretrained(work / folder / "image_tokenizer").eval()
    scenes = scene_samples("held-out", count=SCORED_SCENES, seed=7)
    kinds = {"kept_emoji": [*emoji_samples("held-out")], "kept_scenes": [*scenes]}
    return {kind: asdict(measure(tokenizer, pixels_of(samples, size))) for kind, samples in kinds.items()}


def pixels_of(samples: Sequence[Sample], size: int) -> Float[Tensor, "b 3 h w"]:
    """Return the pictures of samples as pixels in [-1, 1]."""
    return torch.stack([to_pixels(decode_picture(picture_bytes(each)), size, size) for each in samples])


def draw_with(work: Path, folder: str, size: int, steps: int) -> dict[str, Any]:
    """Train a model on a tokenizer's codes to draw, and score its drawings."""
    write_scenes(work, SCENES)
    image_tokenizer, codes = f"{folder}/image_tokenizer", f"{folder}/codes"
    if not (work / codes / "held-out").exists():
        encode_scenes(work, image_tokenizer, codes, size=size)
    options = [
        "--run.steps", str(steps), "--model.heads", "shared", "--model.understanding", "null",
        "--model.transformer.max_seq_len", str(SEQ_LEN), "--stage.seq_len", str(SEQ_LEN),
        "--stage.ratios", "{draw: 1.0, answer: 0.0, describe: 0.0, text: 0.0}",
    ]  # fmt: skip
    seconds = learn(work, f"{folder}/drawing", codes, image_tokenizer, options)
    pipe = anymodal.from_pretrained(work / folder / "drawing" / "model", dtype="float32")
    return {"drawing_seconds": seconds, "drawing_steps": steps, **drawing_scores(pipe, held_out_scenes())}


def trial(work: Path, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Train, score and draw with one tokenizer."""
    folder, shape = str(list(TRIALS).index(name)), TRIALS[name]
    trained = kept(work / f"{folder}-trained.json", lambda: train_tokenizer(work, folder, shape, given.steps))
    drawn = kept(work / f"{folder}-drawn.json", lambda: draw_with(work, folder, shape["size"], given.drawing_steps))
    scored = kept(work / f"{folder}-scored.json", lambda: reconstruction(work, folder, shape["size"]))
    return {"name": name, **trained, **drawn, **scored}


def table(found: dict[str, Any]) -> str:
    """Write the scores as Markdown, a line a tokenizer."""
    rows = found["trials"]
    lines = [
        f"{rows[0]['pictures']:,} pictures for each tokenizer, then {rows[0]['drawing_steps']} steps of 48 drawings "
        f"for each model (seed 0, one run each); PSNR in dB, perplexity of 4,096 codes; held-out emoji / held-out "
        f"scenes of every kind. {found['machine']['Processor']}; {found['date']}.",
        "",
        "| tokenizer | minutes | PSNR | SSIM | feature distance | perplexity | minutes of drawing "
        "| scenes drawn (ceiling) | names drawn |",
        f"| --- |{' ---: |' * 8}",
    ]
    for row in rows:

        def both(key: str, form: str, row: dict[str, Any] = row) -> str:
            return " / ".join(
                "" if row[kind][key] is None else f"{row[kind][key]:{form}}" for kind in ("kept_emoji", "kept_scenes")
            )

        cells = [
            f"{row['seconds'] / 60:.1f}",
            both("psnr", ".2f"),
            both("ssim", ".3f"),
            both("feature_distance", ".0f"),
        ]
        cells += [both("perplexity", ",.0f"), f"{row['drawing_seconds'] / 60:.1f}"]
        cells += [f"{row['scenes']:.1%} ({row['scenes_ceiling']:.1%})", f"{row['names']:.1%}"]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/image_tokenizers"), help="folder of data, runs and scores"
    )
    parser.add_argument("--steps", type=int, default=250, help="of 32 pictures, for every tokenizer")
    parser.add_argument("--drawing_steps", type=int, default=160, help="of 48 drawings, for every model")
    parser.add_argument("--trials", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "image_tokenizers.json")
    parser.add_argument("--readme", type=Path, nargs="?", const=ROOT / "docs" / "model.md", help="page to write into")
    given = parser.parse_args(words)
    work = given.work.resolve()
    settings = {"steps": given.steps, "drawing_steps": given.drawing_steps}
    claim(work, settings)
    trials = [trial(work, name, given) for name in given.trials]
    found = {**provenance(), **settings, "trials": trials}
    publish(found, table(found), given.out, given.readme, "image_tokenizers")


if __name__ == "__main__":
    main()
