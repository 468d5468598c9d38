"""Public benchmarks as a table: what each measures, the files that it wants, its reader and its metric.

A benchmark that asks is a reader, a metric and a writer of answers; one that draws needs its authors' evaluator between
drawing and scores, so the same call is made twice.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anymodal.pipeline import Pipeline
from anymodal.scoring.public import dpg, geneval, readers, submissions
from anymodal.scoring.public.answering import By, answer_all
from anymodal.scoring.public.mathvista import score_mathvista
from anymodal.scoring.public.metrics import score_choices, score_mme, score_ocrbench, score_pope
from anymodal.scoring.public.mmmu import score_mmmu
from anymodal.scoring.public.questions import Question, spread
from anymodal.scoring.public.resuming import claim, made_with
from anymodal.scoring.report import Score


@dataclass(frozen=True, kw_only=True)
class PublicBench:
    """Describe a benchmark: what it measures, its paper (arXiv), and the files that it wants.

    >>> PUBLIC["pope"].paper
    '2305.10355'
    """

    measures: str
    paper: str
    files: str


@dataclass(frozen=True, kw_only=True)
class AskingBench(PublicBench):
    """Describe a benchmark of questions; `by` is how its authors take an answer to a question with options."""

    read: Callable[[Path], list[Question]]
    score: Callable[[Sequence[Question], Sequence[str]], list[Score]]
    write: Callable[[Sequence[Question], Sequence[str], Path], None]
    by: By = "generation"


@dataclass(frozen=True, kw_only=True)
class DrawingBench(PublicBench):
    """Describe a benchmark of prompts whose pictures the authors' evaluator judges; `judge` is its command."""

    draw: Callable[..., list[Path]]
    score: Callable[[Path], list[Score]]
    results: str
    judge: str


_choices = partial(AskingBench, read=readers.read_choices, score=score_choices, write=submissions.write_choices)

PUBLIC: dict[str, PublicBench] = {
    "geneval": DrawingBench(
        measures="drawing: objects, counts, colours, positions, attributes", paper="2310.11513",
        files="evaluation_metadata.jsonl (geneval/prompts)",
        draw=geneval.draw_geneval, score=geneval.score_geneval, results="results.jsonl",
        judge="python evaluation/evaluate_images.py {pictures} --outfile {results} --model-path DETECTOR",
    ),
    "dpg": DrawingBench(
        measures="drawing: long prompts, judged question by question", paper="2403.05135",
        files="*.txt (ELLA/dpg_bench/prompts)",
        draw=dpg.draw_dpg, score=dpg.score_dpg, results="results.txt",
        judge="accelerate launch dpg_bench/compute_dpg_bench.py --image-root-path {pictures} --resolution {width} "
        "--pic-num 4 --res-path {results}",
    ),
    "pope": AskingBench(
        measures="answering: objects that are not there", paper="2305.10355",
        files="coco_pope_*.json (POPE/output/coco) and the pictures of COCO val2014",
        read=readers.read_pope, score=score_pope, write=submissions.write_pope,
    ),
    "mmmu": AskingBench(
        measures="answering: college subjects", paper="2311.16502",
        files="validation-*.parquet of MMMU/MMMU (needs pyarrow), or MMMU_DEV_VAL.tsv of VLMEvalKit",
        read=readers.read_mmmu, score=score_mmmu, write=submissions.write_mmmu,
    ),
    "mme": AskingBench(
        measures="answering: perception and cognition, in pairs of yes-no questions", paper="2306.13394",
        files="MME_Benchmark_release_version: a folder a task",
        read=readers.read_mme, score=score_mme, write=submissions.write_mme,
    ),
    "mmbench": _choices(
        measures="answering: abilities, with options in every order", paper="2307.06281", files="MMBench_DEV_EN.tsv",
    ),
    "seed-bench": _choices(
        measures="answering: scenes, objects, places, text", paper="2307.16125",
        files="SEEDBench_IMG.tsv of VLMEvalKit", by="likelihood",
    ),
    "realworldqa": _choices(
        measures="answering: photos from cars and streets", paper="none; x.ai, 2024",
        files="RealWorldQA.tsv of VLMEvalKit",
    ),
    "mathvista": AskingBench(
        measures="answering: mathematics in pictures", paper="2310.02255", files="testmini.json and images/",
        read=readers.read_mathvista, score=score_mathvista, write=submissions.write_mathvista,
    ),
    "ocrbench": AskingBench(
        measures="answering: text in pictures", paper="2305.07895", files="OCRBench.json and OCRBench_Images/",
        read=readers.read_ocrbench, score=score_ocrbench, write=submissions.write_ocrbench,
    ),
}  # fmt: skip


def score_public(
    pipe: Pipeline,
    name: str,
    data: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    out: Path,
    by: By | None = None,
) -> list[Score]:
    """Score a model on a public benchmark whose files are in `data`; everything is kept in OUT/NAME.

    Answers, and pictures, that are there already are taken as they are. A `limit` keeps that many questions or prompts,
    evenly spread. `by` says how a question with options is answered; None is as the benchmark's authors do.

    A benchmark that draws has no scores before its authors' evaluator has judged the pictures: the list is then empty,
    and the command is told on standard error.

    Raises:
        ValueError: there is no such benchmark, a file is missing or broken, or OUT/NAME holds results made otherwise.
    """
    if name not in PUBLIC:
        raise ValueError(f"there is no public benchmark {name!r}; those known are {', '.join(PUBLIC)}.")
    if not data.exists():
        raise ValueError(f"{name} wants {PUBLIC[name].files}; there is no {data}.")
    bench, folder = PUBLIC[name], out / name
    if isinstance(bench, DrawingBench):
        claim(folder, made_with(pipe, data=str(data.resolve()), seed=seed))
        return _draw(pipe, bench, data, folder, limit, seed)
    assert isinstance(bench, AskingBench), "a benchmark draws or asks"
    by = by or bench.by
    questions = spread(bench.read(data), limit)
    claim(folder, made_with(pipe, data=str(data.resolve()), seed=seed, by=by))
    answers = answer_all(pipe, questions, by=by, seed=seed, kept=folder / "answers.jsonl")
    scores = bench.score(questions, answers)
    (folder / "submission").mkdir(exist_ok=True)
    bench.write(questions, answers, folder / "submission")
    return scores


def _draw(
    pipe: Pipeline, bench: DrawingBench, data: Path, folder: Path, limit: int | None, seed: int
) -> list[Score]:  # fmt: skip
    folder = folder.resolve()  # the command is run elsewhere
    pictures, results = folder / "pictures", folder / bench.results
    drawn = bench.draw(pipe, data, pictures, limit=limit, seed=seed)
    if results.is_file():
        scores, there = bench.score(results), len(list(pictures.rglob("*.png")))
        if scores[0].count != there:
            raise ValueError(f"{results} judges {scores[0].count} pictures of {there}; delete it and judge them all.")
        return scores
    command = bench.judge.format(pictures=pictures, results=results, width=dpg.picture_width(drawn[0]))
    told = f"{len(drawn)} pictures are in {pictures}; judge them in the authors' checkout, then run this again:"
    sys.stderr.write(f"{told}\n  {command}\n")
    return []
