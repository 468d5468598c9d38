"""GenEval (arXiv:2310.11513): its prompts as a tree of pictures, and the verdicts of its evaluator as scores.

python evaluation/evaluate_images.py PICTURES --outfile PICTURES/results.jsonl --model-path DETECTOR
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from anymodal.pipeline import Pipeline
from anymodal.scoring.public.drawing import Wanted, draw_missing
from anymodal.scoring.public.entries import Entry, find_file, read_lines, spaced
from anymodal.scoring.report import Score

NUM_IMAGES = 4  # a prompt, as the authors draw
RESULTS = "results.jsonl"


def draw_geneval(pipe: Pipeline, data: Path, out: Path, *, limit: int | None = None, seed: int = 0) -> list[Path]:
    """Draw the prompts of evaluation_metadata.jsonl into OUT/00000/samples/0000.png, ... beside their metadata.jsonl.

    Sample i of a prompt has `seed` + i. A `limit` keeps that many prompts, evenly spread; their numbers stay. Returns
    the pictures.

    Raises:
        ValueError: the file is missing or broken, or the model cannot draw.
    """
    entries = list(read_lines(find_file(data, ("evaluation_metadata.jsonl",))))
    folders = {out / f"{number:05}": entries[number] for number in spaced(len(entries), limit)}
    for folder, entry in folders.items():
        entry.text("tag")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metadata.jsonl").write_text(json.dumps(entry.row), encoding="utf-8")
    wanted = [
        Wanted(entry.text("prompt"), folder / "samples" / f"{i:04}.png", seed + i)
        for i in range(NUM_IMAGES)
        for folder, entry in folders.items()
    ]
    draw_missing(pipe, wanted)
    return [each.path for each in wanted]


def score_geneval(results: Path) -> list[Score]:
    """Score verdict lines: the mean over tags, every tag, all pictures, and prompts with a right picture at least.

    Raises:
        ValueError: there is no verdict, or a line is broken.
    """
    tags: dict[str, list[bool]] = {}
    prompts: dict[str, list[bool]] = {}
    for entry in read_lines(results):
        right = _verdict(entry)
        tags.setdefault(entry.text("tag"), []).append(right)
        prompts.setdefault(entry.text("metadata"), []).append(right)
    if not tags:
        raise ValueError(f"{results} must hold a verdict a line, got none; run GenEval's evaluator on the pictures.")
    shares = [_share(tag, rights) for tag, rights in tags.items()]
    count = sum(share.count for share in shares)
    overall = Score("overall, mean of the tags", sum(share.value for share in shares) / len(shares), count)
    pictures = _share("pictures", (right for rights in tags.values() for right in rights))
    return [overall, *shares, pictures, _share("prompts, one right at least", map(any, prompts.values()))]


def _verdict(entry: Entry) -> bool:
    right = entry.row.get("correct")
    if not isinstance(right, bool):
        raise ValueError(f"{entry.where} must have correct true or false, got {right!r}; judge the pictures again.")
    return right


def _share(name: str, rights: Iterable[bool]) -> Score:
    every: Sequence[bool] = list(rights)
    return Score(name, sum(every) / len(every), len(every))
