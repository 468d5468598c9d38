"""Score a model: its image tokenizer, what it draws, what it answers.

    anymodal sample score --model emoji --bench all --out results.json --sheet failures.png
    anymodal sample score --model runs/mine/model --bench scenes --count 48

Benches: tokenizer (what the image tokenizer keeps), names (single emoji), scenes (GenEval's six categories, held-out
combinations), answers (against chance and the blind model), easy-vqa and stamps (both out of domain for the embedded
model); all is every one whose data is at hand. Scores stand next to chance and to the ceiling: the truth passed
through the image tokenizer. Same seed, same figures. Beside RESULTS.json comes RESULTS.manifest.json, which says what
they were made with.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from anymodal.pipeline import Pipeline
    from anymodal.scoring.bench import BenchConfig, Table


def main(
    *,
    model: str = "emoji",
    bench: str = "all",
    concepts: int = 100,
    names: Literal["scenes", "all"] = "scenes",
    count: int = 240,
    seed: int = 1000,
    data: Path | None = None,
    out: Path | None = None,
    sheet: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
) -> None:
    """Score drawings and answers.

    Args:
        model: model folder, or the name of an embedded model.
        bench: which bench, or all.
        concepts: how many of the scene concepts the model has learned.
        names: which single emoji it has learned to draw, those of the scenes or all of the training split.
        count: held-out scenes, and at most so many names and stamps; twice as many questions are asked.
        seed: of the held-out scenes, of the drawings and of what is chosen.
        data: folder of the bench's data, where that does not come with the package.
        out: JSON file of the scores; a manifest of what they were made with is written beside it.
        sheet: picture file that shows drawings which were judged wrong, beside the truth.
        device: cpu, cuda, ... or auto.
        dtype: float32, bfloat16 or int8 (of the weights, on a CPU), float64, stored or auto.
        allow_pickle: also read weights that are stored as pickles; only for folders whose makers you trust.
    """
    import anymodal
    from anymodal.scoring.bench import BENCHES, BenchConfig

    if bench != "all" and bench not in BENCHES:
        raise ValueError(f"bench must be all or one of {', '.join(BENCHES)}, got {bench!r}.")
    config = BenchConfig(concepts=concepts, names=names, count=count, seed=seed, data=data)
    pipe = anymodal.from_pretrained(model, device=device, dtype=dtype, allow_pickle=allow_pickle)
    tables = measured(pipe, bench, config)
    for table in tables:
        print(table.title)
        for each in table.scores:
            print(f"  {each.describe()}")
    if out is not None:
        write(out, tables, pipe, model, {"bench": bench, **vars(config)})
    if sheet is not None:
        show(sheet, tables)


def measured(pipe: "Pipeline", bench: str, config: "BenchConfig") -> "list[Table]":
    """Run one bench, or all whose data is here."""
    from anymodal.scoring.bench import BENCHES
    from anymodal.scoring.features import is_installed

    if not is_installed():
        sys.stderr.write("no scores by features: they need `pip install anymodal[test]`\n")
    tables = []
    for name in BENCHES if bench == "all" else [bench]:
        sys.stderr.write(f"{name}: {BENCHES[name].measures}\n")
        try:
            tables += BENCHES[name].run(pipe, config)
        except FileNotFoundError as error:
            if bench != "all" or not BENCHES[name].optional:
                raise
            sys.stderr.write(f"{name} is left out: {error}\n")
    return tables


def write(out: Path, tables: "list[Table]", pipe: "Pipeline", model: str, settings: dict[str, Any]) -> None:
    """Write the scores, which are the same each time, and the manifest, which holds the date."""
    import json
    from dataclasses import asdict

    from anymodal.scoring.manifest import make_manifest

    results = {"scores": {table.title: [asdict(score) for score in table.scores] for table in tables}}
    manifest = make_manifest(pipe, model, settings)
    for path, content in ((out, results), (out.with_suffix(".manifest.json"), manifest)):
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def show(sheet: Path, tables: "list[Table]") -> None:
    """Write the failures as one picture."""
    from anymodal.scoring.failures import failure_sheet

    drawn = {table.title: table.failures for table in tables if table.failures is not None}
    if drawn:
        failure_sheet(drawn).save(sheet)
    else:
        sys.stderr.write("no sheet: nothing was drawn by this bench\n")
