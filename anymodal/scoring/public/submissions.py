"""Answers in the files that the authors' own evaluators read, so that every figure can be checked with their code."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anymodal.scoring.public.mathvista import extract
from anymodal.scoring.public.mmmu import mmmu_answers
from anymodal.scoring.public.questions import Question


def write_pope(questions: Sequence[Question], answers: Sequence[str], folder: Path) -> None:
    """Write lines of question and answer, a file of the same name for every file of questions (`evaluate.py`)."""
    lines: dict[str, list[str]] = {}
    for question, answer in zip(questions, answers, strict=True):
        line = {"question": question.row["text"], "answer": answer}
        lines.setdefault(question.row["file"], []).append(json.dumps(line, ensure_ascii=False) + "\n")
    for name, written in lines.items():
        (folder / name).write_text("".join(written), encoding="utf-8")


def write_mme(questions: Sequence[Question], answers: Sequence[str], folder: Path) -> None:
    """Write lines of picture, question, truth and answer, a file a task (`calculation.py --results_dir`)."""
    lines: dict[str, list[str]] = {}
    for question, answer in zip(questions, answers, strict=True):
        row = question.row
        cells = (row["picture"], row["question"], row["answer"], " ".join(answer.split()))
        lines.setdefault(question.group, []).append("\t".join(cells) + "\n")
    for name, written in lines.items():
        (folder / f"{name}.txt").write_text("".join(written), encoding="utf-8")


def write_mmmu(questions: Sequence[Question], answers: Sequence[str], folder: Path) -> None:
    """Write the answer of every id as total_val_output.json (`main_eval_only.py --output_path`)."""
    taken = mmmu_answers(questions, answers)
    _write_json(folder / "total_val_output.json", dict(zip((each.id for each in questions), taken, strict=True)))


def write_mathvista(questions: Sequence[Question], answers: Sequence[str], folder: Path) -> None:
    """Write problems with response and extraction by id as output.json (`calculate_score.py --output_file`)."""
    problems = {
        question.id: {**question.row, "response": answer, "extraction": extract(question, answer)}
        for question, answer in zip(questions, answers, strict=True)
    }
    _write_json(folder / "output.json", problems)


def write_ocrbench(questions: Sequence[Question], answers: Sequence[str], folder: Path) -> None:
    """Write the entries with what was read as OCRBench.json (`example.py --save_name OCRBench`)."""
    entries = [{**each.row, "predict": answer} for each, answer in zip(questions, answers, strict=True)]
    _write_json(folder / "OCRBench.json", entries)


def write_choices(questions: Sequence[Question], answers: Sequence[str], folder: Path) -> None:
    """Write the table without pictures and with a column `prediction` as predictions.tsv (VLMEvalKit's evaluation)."""
    columns = [*dict.fromkeys(name for question in questions for name in question.row), "prediction"]
    with (folder / "predictions.tsv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, delimiter="\t")
        table.writeheader()
        table.writerows({**each.row, "prediction": answer} for each, answer in zip(questions, answers, strict=True))


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
