"""Sweep guidance, temperature, top-k, best-of and weights of a model's drawings over scenes of held-out combinations.

    python benchmarks/sweep.py --readme

Every setting draws the same scenes with the same noise; they are other scenes than `anymodal sample score` asks for, so
that the best setting is not chosen on what is scored. Guidance, temperature and top-k are swept with one drawing a
prompt, some of them with as many drawings as the model chooses from and over more scenes, best-of and the formats of
weights with the model's own settings. What is done stands in WORK and is not done again.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

from figures import publish
from provenance import claim, provenance
from trials import ROOT, kept

import anymodal
from anymodal.data.emoji import scene_names
from anymodal.data.scenes import scene_samples
from anymodal.model.folder import fingerprint_of
from anymodal.pipeline import find_folder
from anymodal.scoring import judging
from anymodal.scoring.scenes import SceneReader, score_scenes

GUIDANCE, TEMPERATURE, TOP_K = (1.0, 1.5, 2.0, 3.0, 5.0), (0.4, 0.7, 1.0), (0, 64, 8)
CHOSEN = ((1.5, 1.0, 8), (1.5, 0.7, 0), (1.5, 1.0, 0), (2.0, 0.7, 0), (2.0, 1.0, 8), (2.0, 1.0, 0))
MORE = 3
BEST_OF = (1, 2, 4, 8, 16)
WEIGHTS = ("float32", "bfloat16", "int8")
SEED = 77
WIDTH, PANEL, LEFT, TOP, HEIGHT = 720, 224, 40, 34, 170
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}.title{font-weight:600}.grid{stroke:#d0d7de}"
    "polyline{fill:none;stroke-width:2}.c0{stroke:#0969da}.c1{stroke:#1f883d}.c2{stroke:#bc4c00}"
    ".k0{fill:#0969da}.k1{fill:#1f883d}.k2{fill:#bc4c00}"
    "@media(prefers-color-scheme:dark){text{fill:#9198a1}.grid{stroke:#3d444d}}"
)


def shares(pipe: anymodal.Pipeline, setting: dict[str, Any], count: int, concepts: int) -> dict[str, Any]:
    """Draw held-out scenes with one setting; return the share that is all right, and by kind."""
    known = scene_names()[:concepts]
    samples = scene_samples("held-out", count=count, seed=SEED, concepts=known)
    prompts = [judging.scene_prompt(sample) for sample in samples]
    begun = time.perf_counter()
    drawn = judging.draw(pipe, prompts, SEED, **setting)
    seconds = time.perf_counter() - begun
    found = score_scenes(drawn, [prompt.scene for prompt in prompts], SceneReader(known))
    return {**setting, "share": found.share, "kinds": found.shares, "seconds": seconds / count}


def table(found: dict[str, Any]) -> str:
    """Write the shares as Markdown: a line a temperature and top-k, a column a guidance scale."""
    rows = found["rows"]
    best = max(row["share"] for row in rows)
    lines = [
        f"{found['count']} scenes of held-out combinations, all of it right, in %; standard error "
        f"{100 * (best * (1 - best) / found['count']) ** 0.5:.1f}. {found['date']}, commit {found['commit']}.",
        "",
        f"| temperature, top-k | {' | '.join(f'guidance {scale:g}' for scale in GUIDANCE)} |",
        f"| --- |{' ---: |' * len(GUIDANCE)}",
    ]
    for top_k, temperature in product(TOP_K, TEMPERATURE):
        own = [row["share"] for row in _of(rows, temperature, top_k)]
        cells = " | ".join(f"**{100 * each:.1f}**" if each == best else f"{100 * each:.1f}" for each in own)
        lines.append(f"| {temperature:g}, {top_k or 'all'} | {cells} |")
    lines += _chosen(found["chosen"], MORE * found["count"])
    lines += [
        "",
        f"The best of several drawings, each with the model's own settings; {found['machine']['Processor']}:",
        "",
        "| best of | all of it right | seconds a picture |",
        "| ---: | ---: | ---: |",
    ]
    lines += [f"| {row['best_of']} | {100 * row['share']:.1f} | {row['seconds']:.2f} |" for row in found["best_of"]]
    lines += [
        "",
        "Weights as they are computed with on a CPU (`dtype`), with the model's own settings:",
        "",
        "| weights | all of it right | seconds a picture |",
        "| --- | ---: | ---: |",
    ]
    lines += [f"| {row['dtype']} | {100 * row['share']:.1f} | {row['seconds']:.2f} |" for row in found["weights"]]
    return "\n".join(lines)


def _chosen(rows: Sequence[dict[str, Any]], count: int) -> Iterator[str]:
    yield from ("", f"Some of them over {count} scenes with the drawings that the model chooses from, in bfloat16:", "")
    yield from ("| temperature, top-k, guidance | all of it right | standard error |", "| --- | ---: | ---: |")
    for row in rows:
        share, top_k = row["share"], row["top_k"] or "all"
        error = 100 * (share * (1 - share) / count) ** 0.5
        yield f"| {row['temperature']:g}, {top_k}, {row['guidance_scale']:g} | {100 * share:.1f} | {error:.1f} |"


def plot(rows: Sequence[dict[str, Any]]) -> str:
    """Draw the shares over guidance: a panel a top-k, a line a temperature."""
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {TOP + HEIGHT + 40}" width="{WIDTH}">']
    parts.append(f"<style>{STYLE}</style>")
    highest = max(0.1, *(row["share"] for row in rows))
    for panel, top_k in enumerate(TOP_K):
        parts += _panel(LEFT + panel * PANEL, rows, top_k, highest)
    for number, temperature in enumerate(TEMPERATURE):
        x = LEFT + 150 * number
        parts.append(f'<rect class="k{number}" x="{x}" y="{TOP + HEIGHT + 27}" width="10" height="10"/>')
        parts.append(f'<text x="{x + 16}" y="{TOP + HEIGHT + 36}">temperature {temperature:g}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(left: int, rows: Sequence[dict[str, Any]], top_k: int, highest: float) -> Iterator[str]:
    inner = PANEL - 34

    def place(scale: float, share: float) -> tuple[float, float]:
        x = left + inner * (scale - GUIDANCE[0]) / (GUIDANCE[-1] - GUIDANCE[0])
        return x, TOP + HEIGHT * (1 - share / highest)

    title = f"top-k {top_k or 'all'}: % right over guidance"
    yield f'<text class="title" x="{left}" y="16">{escape(title)}</text>'
    for step in range(3):
        y = place(1.0, highest * step / 2)[1]
        yield f'<line class="grid" x1="{left}" x2="{left + inner}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{50 * highest * step:.0f}</text>'
    for scale in GUIDANCE:
        yield f'<text x="{place(scale, 0)[0]:.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{scale:g}</text>'
    for number, temperature in enumerate(TEMPERATURE):
        points = [place(row["guidance_scale"], row["share"]) for row in _of(rows, temperature, top_k)]
        yield f'<polyline class="c{number}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _of(rows: Sequence[dict[str, Any]], temperature: float, top_k: int) -> list[dict[str, Any]]:
    own = [row for row in rows if (row["temperature"], row["top_k"]) == (temperature, top_k)]
    return sorted(own, key=lambda row: row["guidance_scale"])


def main(words: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="a model folder or the name of an embedded model")
    parser.add_argument("--count", type=int, default=120, help="scenes for every setting")
    parser.add_argument("--concepts", type=int, default=100, help="concepts that the model has learned scenes of")
    parser.add_argument("--work", type=Path, default=Path("runs/sweep"), help="folder of what is done")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "sweep.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "sweep.svg")
    parser.add_argument("--readme", type=Path, nargs="?", const=ROOT / "docs" / "model.md", help="page to write into")
    given = parser.parse_args(words)
    fingerprint = fingerprint_of(find_folder(given.model))
    settings = {"fingerprint": fingerprint, "count": given.count, "concepts": given.concepts, "seed": SEED}
    claim(given.work, settings)
    pipe = anymodal.from_pretrained(given.model, dtype="float32")
    rows = []
    for top_k, temperature, guidance in product(TOP_K, TEMPERATURE, GUIDANCE):
        setting = {"guidance_scale": guidance, "temperature": temperature, "top_k": top_k, "top_p": 1.0, "best_of": 1}
        path = given.work / f"{top_k}-{temperature:g}-{guidance:g}.json"
        rows.append(kept(path, lambda setting=setting: shares(pipe, setting, given.count, given.concepts)))
    fast, chosen = anymodal.from_pretrained(given.model, dtype="bfloat16"), []
    for guidance, temperature, top_k in CHOSEN:
        setting = {"guidance_scale": guidance, "temperature": temperature, "top_k": top_k, "top_p": 1.0}
        path = given.work / f"chosen-{top_k}-{temperature:g}-{guidance:g}.json"
        chosen.append(kept(path, lambda setting=setting: shares(fast, setting, MORE * given.count, given.concepts)))
    several, rounded = [], []
    for best_of in BEST_OF:
        setting, path = {"best_of": best_of}, given.work / f"best-of-{best_of}.json"
        several.append(kept(path, lambda setting=setting: shares(pipe, setting, given.count, given.concepts)))
    for dtype in WEIGHTS:
        other, path = anymodal.from_pretrained(given.model, dtype=dtype), given.work / f"{dtype}.json"
        drawn = kept(path, lambda other=other: shares(other, {}, given.count, given.concepts))
        rounded.append({"dtype": dtype, **drawn})
    made = {**provenance(), "model": given.model, **settings}
    found = {**made, "rows": rows, "chosen": chosen, "best_of": several, "weights": rounded}
    given.plot.write_text(plot(rows), encoding="utf-8")
    publish(found, table(found), given.out, given.readme, "sweep")


if __name__ == "__main__":
    main()
