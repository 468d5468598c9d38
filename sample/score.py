"""Score a model: its image tokenizer, what it draws, what it answers.

    anymodal sample score --model emoji --bench all --out results.json --sheet failures.png
    anymodal sample score --model runs/mine/model --bench scenes --count 48
    anymodal sample score --model Janus-Pro-1B --bench pope --data POPE/output/coco --out runs/janus/scores.json

Benches: tokenizer (what the image tokenizer keeps), names (single emoji), keywords (single emoji by other names and by
keywords), scenes (GenEval's six categories, held-out combinations), answers (against chance and the blind model),
easy-vqa and stamps (both out of domain for the embedded model); all is every one of these whose data is at hand. Scores
stand next to chance and to the ceiling: the truth passed through the image tokenizer. Same seed, same figures. Beside
RESULTS.json comes RESULTS.manifest.json, which says what they were made with.

Public benchmarks (geneval, dpg, pope, mmmu, mme, mmbench, seed-bench, realworldqa, mathvista, ocrbench) read their
authors' files, which --data names, and keep pictures and answers in a folder of their name beside RESULTS.json.
"""

import sys
from collections.abc import Iterator
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
    names: Literal["all", "scenes"] = "all",
    count: int | None = None,
    seed: int = 1000,
    data: Path | None = None,
    out: Path | None = None,
    sheet: Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    allow_pickle: bool = False,
) -> None:
    """Score drawings and answers.

    Args:
        model: model folder, or the name of an embedded model.
        bench: which bench; all is every one but the public ones.
        concepts: how many of the scene concepts the model has learned.
        names: which single emoji it has learned to draw, all of the training split or those of the scenes alone.
        count: held-out scenes, and at most so many names and stamps, and twice as many questions; of a public benchmark
            at most so many questions or prompts. null is 240, and all of easy-VQA and of a public benchmark.
        seed: of the held-out scenes, of the drawings and of what is chosen.
        data: folder of a public benchmark's files, or of the stamps.
        out: JSON file of the scores; a manifest of what they were made with is written beside it.
        sheet: picture file that shows drawings which were judged wrong, beside the truth.
        device: cpu, cuda, ... or auto.
        dtype: float32, in which every processor finds the same; bfloat16 or int8 (of the weights, on a CPU), float64,
            stored or auto.
        allow_pickle: also read weights that are stored as pickles; only for folders whose makers you trust.
    """
    import anymodal
    from anymodal.scoring.bench import BENCHES, BenchConfig

    check(bench, data, out, sheet)
    config = BenchConfig(concepts=concepts, names=names, count=count, seed=seed, data=data)
    pipe = anymodal.from_pretrained(model, device=device, dtype=dtype, allow_pickle=allow_pickle)
    ours = bench == "all" or bench in BENCHES
    used = vars(config) | {"count": config.most} if ours else {"count": count, "seed": seed}
    tables = []
    for table in measured(pipe, bench, config) if ours else public(pipe, bench, data, out, limit=count, seed=seed):
        print(table.title, *(f"  {score.describe()}" for score in table.scores), sep="\n", flush=True)
        tables.append(table)
        if out is not None:  # now, lest a bench that fails take those before it along
            write(out, tables, pipe, model, {"bench": bench, **used, "data": data and str(data)})
    if sheet is not None:
        show(sheet, tables)


def check(bench: str, data: Path | None, out: Path | None, sheet: Path | None) -> None:
    """See before the work that its results can be written."""
    from anymodal.scoring.bench import BENCHES
    from anymodal.scoring.public.table import PUBLIC

    if bench not in ("all", *BENCHES, *PUBLIC):
        raise ValueError(f"bench must be all or one of {', '.join((*BENCHES, *PUBLIC))}, got {bench!r}.")
    if bench in PUBLIC and (data is None or out is None):
        raise ValueError(
            f"{bench} wants {PUBLIC[bench].files}: name their folder with --data, and with --out a JSON file beside "
            "which what the model writes or draws is kept."
        )
    for path, suffix in ((out, ".json"), (sheet, ".png")):
        if path is not None and path.suffix != suffix:
            raise ValueError(f"results are written as {suffix}, got {path}; name a file {path.with_suffix(suffix)}.")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)


def measured(pipe: "Pipeline", bench: str, config: "BenchConfig") -> "Iterator[Table]":
    """Run one bench, or all whose data is here."""
    from anymodal.scoring.bench import BENCHES
    from anymodal.scoring.features import is_installed

    if not is_installed():
        sys.stderr.write("no scores by features: they need `pip install anymodal[test]`\n")
    for name in BENCHES if bench == "all" else [bench]:
        sys.stderr.write(f"{name}: {BENCHES[name].measures}\n")
        try:
            yield from BENCHES[name].run(pipe, config)
        except FileNotFoundError as error:
            if bench != "all" or not BENCHES[name].optional:
                raise
            sys.stderr.write(f"{name} is left out: {error}\n")


def public(
    pipe: "Pipeline", name: str, data: Path | None, out: Path | None, **options: Any
) -> "Iterator[Table]":  # fmt: skip
    """Run a public benchmark; one that draws has scores once its authors' evaluator has judged the pictures."""
    from anymodal.scoring.bench import Table
    from anymodal.scoring.public.table import PUBLIC, score_public

    assert data is not None, "a public benchmark was checked to have data"
    assert out is not None, "a public benchmark was checked to have a file of results"
    scores = score_public(pipe, name, data, out=out.parent, **options)
    yield Table(f"{name}, {PUBLIC[name].measures}", scores)


def write(out: Path, tables: "list[Table]", pipe: "Pipeline", model: str, settings: dict[str, Any]) -> None:
    """Write the scores, which are the same each time, and the manifest, which holds the date; each whole or not at all.

    Raises:
        ValueError: the disk is full.
        OSError: it cannot be written.
    """
    import json
    from dataclasses import asdict

    from anymodal.data.files import StagedFile
    from anymodal.scoring.manifest import make_manifest

    results = {"scores": {table.title: [asdict(score) for score in table.scores] for table in tables}}
    manifest = make_manifest(pipe, model, settings)
    for path, content in ((out, results), (out.with_suffix(".manifest.json"), manifest)):
        staged = StagedFile(path)
        with staged.open() as stream:
            stream.write(f"{json.dumps(content, indent=2, ensure_ascii=False)}\n".encode())
        staged.commit()


def show(sheet: Path, tables: "list[Table]") -> None:
    """Write the failures as one picture."""
    from anymodal.scoring.failures import failure_sheet

    drawn = {table.title: table.failures for table in tables if table.failures is not None}
    if drawn:
        failure_sheet(drawn).save(sheet)
    else:
        sys.stderr.write("no sheet: nothing was drawn by this bench\n")
