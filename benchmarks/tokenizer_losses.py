"""Compare what an image tokenizer learns from: errors of pixels, of features, and a discriminator, held back or not.

    python benchmarks/tokenizer_losses.py --work runs/tokenizer_losses --readme

One tokenizer of 64 FSQ codes learns from the same pictures in as many steps with each; the discriminator begins half
way (VQGAN, arXiv:2012.09841; LeCAM, arXiv:2104.03310). All are scored on emoji and scenes that were held out. The
feature distance is of the network whose features the perceptual term compares: another would tell more.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import publish
from image_tokenizers import TRIALS as SHAPES
from image_tokenizers import reconstruction, train_tokenizer
from provenance import claim, provenance
from trials import ROOT, kept

SHAPE = "FSQ, 64 codes"
PERCEPTUAL = {"perceptual_weight": 1.0}
STRONG, WEAK = ({**PERCEPTUAL, "adversarial_weight": weight} for weight in (0.5, 0.1))
LECAM = {"lecam_weight": 0.1}
TRIALS: dict[str, dict[str, float]] = {
    "absolute and squared error": {},
    "and features (perceptual)": PERCEPTUAL,
    "and a discriminator, weight 0.5": STRONG,
    "and a discriminator, weight 0.5, with LeCAM": {**STRONG, **LECAM},
    "and a discriminator, weight 0.1, with LeCAM": {**WEAK, **LECAM},
}


def trial(work: Path, name: str, steps: int) -> dict[str, Any]:
    """Train and score one tokenizer."""
    folder, losses = str(list(TRIALS).index(name)), TRIALS[name]
    start = {"adversarial_start": steps // 2} if "adversarial_weight" in losses else {}
    trained = kept(
        work / f"{folder}-trained.json",
        lambda: train_tokenizer(work, folder, SHAPES[SHAPE], steps, {**losses, **start}),
    )
    scored = kept(work / f"{folder}-scored.json", lambda: reconstruction(work, folder, trained["size"]))
    return {"name": name, "losses": losses, **trained, **scored}


def table(found: dict[str, Any]) -> str:
    """Write the scores as Markdown, a line a tokenizer."""
    rows = found["trials"]
    lines = [
        f"{SHAPE}, {rows[0]['pictures']:,} pictures each, one run each; held-out emoji / held-out scenes. "
        f"{found['machine']['Processor']}; {found['date']}, commit {found['commit']}.",
        "",
        "| learns from | minutes | PSNR, dB | SSIM | feature distance | perplexity |",
        f"| --- |{' ---: |' * 5}",
    ]
    for row in rows:
        pair = [row["kept_emoji"], row["kept_scenes"]]
        cells = [
            " / ".join("" if each[key] is None else f"{each[key]:{form}}" for each in pair)
            for key, form in (("psnr", ".2f"), ("ssim", ".3f"), ("feature_distance", ".0f"), ("perplexity", ",.0f"))
        ]
        lines.append(f"| {row['name']} | {row['seconds'] / 60:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/tokenizer_losses"), help="folder of runs and scores")
    parser.add_argument("--steps", type=int, default=500, help="of 32 pictures")
    parser.add_argument("--trials", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "tokenizer_losses.json")
    parser.add_argument("--readme", type=Path, nargs="?", const=ROOT / "docs" / "model.md", help="page to write into")
    given = parser.parse_args(words)
    work, settings = given.work.resolve(), {"steps": given.steps}
    claim(work, settings)
    trials = [trial(work, name, given.steps) for name in given.trials]
    found = {**provenance(), **settings, "trials": trials}
    publish(found, table(found), given.out, given.readme, "tokenizer_losses")


if __name__ == "__main__":
    main()
