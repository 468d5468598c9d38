"""Compare designs of unified models on the same data and steps: what is read as codes, which heads are shared.

    python benchmarks/designs.py --work runs/designs --readme

Chameleon and Emu3 read pictures as the codes that they draw and share one head (arXiv:2405.09818, 2409.18869); Janus
reads them by an encoder of their own and has a head a modality (arXiv:2410.13848). Both choices are crossed; every
design learns with every seed, from nothing, what `anymodal train demo` learns, on the embedded image tokenizer.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from figures import publish
from provenance import claim, provenance
from trials import (
    NAMES,
    ROOT,
    SCENES,
    answering_scores,
    drawing_scores,
    encode_scenes,
    held_out_scenes,
    kept,
    learn,
    spread,
    write_scenes,
)

import anymodal
from anymodal.tokens.image import ImageTokenizer

TOKENIZER = ROOT / "anymodal" / "models" / "emoji" / "image_tokenizer"
AS_CODES, SHARED = ["--model.understanding", "null"], ["--model.heads", "shared"]
SIGLIP = "{image_size: 64, patch_size: 8, dim: 128, depth: 3, num_heads: 2, hidden_dim: 384, merge: 2}"
ENCODER = ["--model.understanding", SIGLIP]
DECOUPLED = ["--model.heads", "decoupled", "--model.image_embedding_dim", "64", "--model.image_head_dim", "192"]
DESIGNS = {
    "codes, shared head (Chameleon, Emu3)": [*AS_CODES, *SHARED],
    "codes, head a modality": [*AS_CODES, *DECOUPLED],
    "encoder, shared head": [*ENCODER, *SHARED],
    "encoder, head a modality (Janus)": [*ENCODER, *DECOUPLED],
}


def trial(work: Path, design: str, seed: int, steps: int) -> dict[str, Any]:
    """Train and score one design with one seed."""
    out = f"{list(DESIGNS).index(design)}-{seed}"

    def make() -> dict[str, Any]:
        options = [*DESIGNS[design], "--run.steps", str(steps), "--run.seed", str(seed)]
        seconds = learn(work, out, "codes", str(TOKENIZER), options)
        pipe, samples = anymodal.from_pretrained(work / out / "model", dtype="float32"), held_out_scenes()
        scores = drawing_scores(pipe, samples) | answering_scores(pipe, samples)
        return {"design": design, "seed": seed, "steps": steps, "seconds": seconds, **scores}

    return kept(work / f"{out}.json", make)


def table(found: dict[str, Any]) -> str:
    """Write the scores as Markdown, a line a design."""
    rows = found["trials"]
    types = [kind for kind, chance in rows[0]["chance"].items() if chance < 1]
    machine = found["machine"]
    seeds = len({row["seed"] for row in rows})
    lines = [
        f"{NAMES} names and {SCENES:,} scenes of one object, {rows[0]['steps']} steps of 48 documents, {seeds} seeds "
        f"(mean ± standard deviation), % right. {machine['Processor']}; {found['date']}.",
        "",
        f"| reads, writes | parameters | minutes | held-out scenes | names | {' | '.join(types)} |",
        f"| --- |{' ---: |' * (4 + len(types))}",
    ]
    for design in DESIGNS:
        own = [row for row in rows if row["design"] == design]
        if own:
            cells = [spread([row["scenes"] for row in own]), spread([row["names"] for row in own])]
            cells += [spread([row["answers"][kind] for row in own]) for kind in types]
            size, minutes = own[0]["parameters"] / 1e6, mean(row["seconds"] for row in own) / 60
            lines.append(f"| {design} | {size:.2f} M | {minutes:.1f} | {' | '.join(cells)} |")
    chance = " | ".join(f"{100 * rows[0]['chance'][kind]:.1f}" for kind in types)
    lines.append(f"| *chance* | | | | {100 / NAMES:.1f} | {chance} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/designs"), help="folder of data, runs and scores")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--designs", nargs="+", choices=list(DESIGNS), default=list(DESIGNS))
    parser.add_argument("--scenes", type=int, default=SCENES, help="training scenes")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "designs.json")
    parser.add_argument("--readme", type=Path, nargs="?", const=ROOT / "docs" / "model.md", help="page to write into")
    given = parser.parse_args(words)
    work = given.work.resolve()
    tokenizer = ImageTokenizer.from_pretrained(TOKENIZER).fingerprint
    settings = {"steps": given.steps, "scenes": given.scenes, "image_tokenizer": tokenizer}
    claim(work, settings)
    write_scenes(work, given.scenes)
    if not (work / "codes" / "held-out").exists():
        encode_scenes(work, str(TOKENIZER), "codes")
    pairs = [(design, seed) for seed in range(given.seeds) for design in given.designs]
    trials = [trial(work, design, seed, given.steps) for design, seed in pairs]
    found = {**provenance(), **settings, "trials": trials}
    publish(found, table(found), given.out, given.readme, "designs")


if __name__ == "__main__":
    main()
