"""Questions of public benchmarks from the files that their authors distribute.

Every reader takes a file or a folder as it was fetched; which, `anymodal.scoring.public.table` lists.
"""

import ast
import base64
import binascii
import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from anymodal.scoring.public.entries import Entry, find_file, read_lines, read_objects, read_table
from anymodal.scoring.public.questions import Question, Source, find_picture, lettered

MME_TASKS = {
    "perception": (
        "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
    ),
    "cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}  # fmt: skip
MMMU_ENDS = {
    "multiple-choice": "Answer with the option's letter from the given choices directly.",
    "open": "Answer the question using a single word or phrase.",
}
MATHVISTA_HINTS = {
    "text": "provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "provide the final value, e.g., 1, 2, 3, at the end.",
    "float": "provide the final value, e.g., 1.2, 1.3, 1.4, at the end.",
    "list": "provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end.",
}
_PLACE = re.compile(r"<image (\d+)>")
_REFERENCE = 64  # a shorter cell names the row that carries the picture


def read_pope(data: Path) -> list[Question]:
    """Read POPE (arXiv:2305.10355): files of JSON lines, one a way of sampling, and the pictures of COCO val2014.

    Raises:
        ValueError: a file or a picture is missing or broken.
    """
    folder = data if data.is_dir() else data.parent
    files = sorted(folder.rglob("*_pope_*.json")) if data.is_dir() else [data]
    if not files:
        raise ValueError(f"there must be files *_pope_*.json in {folder}, got none; fetch POPE's output/coco into it.")
    return [
        Question(
            id=f"{file.stem}/{number}",
            parts=(find_picture(folder, entry.text("image"), entry.where), entry.text("text")),
            answers=(_one_of(entry, "label", ("yes", "no")),),
            group=file.stem.partition("_pope_")[2] or file.stem,
            row={**entry.row, "file": file.name},
        )
        for file in files
        for number, entry in enumerate(read_lines(file))
    ]


def read_mme(data: Path) -> list[Question]:
    """Read MME (arXiv:2306.13394): a folder a task, with two questions a picture in a text file of its name.

    Pictures and text files stand side by side, or in `images` and `questions_answers_YN`.

    Raises:
        ValueError: there is no task, or a file or a picture is missing or broken.
    """
    questions: list[Question] = []
    for task in (task for tasks in MME_TASKS.values() for task in tasks):
        inner = data / task / "questions_answers_YN"
        for file in sorted((inner if inner.is_dir() else data / task).glob("*.txt")):
            questions += _mme_pair(task, file, data / task / "images" if inner.is_dir() else data / task)
    if not questions:
        raise ValueError(f"{data} must hold folders of MME's tasks such as existence/ and OCR/, got none.")
    return questions


def _mme_pair(task: str, file: Path, pictures: Path) -> list[Question]:
    picture = next(
        (path for path in sorted(pictures.glob(f"{glob.escape(file.stem)}.*")) if path.suffix != ".txt"), None
    )
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if picture is None:
        raise ValueError(f"{file} asks about the picture {file.stem}, which is not in {pictures}; put it there.")
    if len(lines) != 2 or any(len(line) != 2 or line[1].strip().lower() not in ("yes", "no") for line in lines):
        raise ValueError(f"{file} must hold two lines, each a question, a tab and Yes or No; fetch it again.")
    return [
        Question(
            id=f"{task}/{file.stem}/{number}",
            parts=(picture, text),
            answers=(answer.strip().lower(),),
            group=task,
            unit=f"{task}/{file.stem}",
            row={"picture": picture.name, "question": text, "answer": answer.strip()},
        )
        for number, (text, answer) in enumerate(lines)
    ]


def read_mmmu(data: Path) -> list[Question]:
    """Read the validation split of MMMU (arXiv:2311.16502): parquet files of its subjects, or VLMEvalKit's table.

    Parquet needs pyarrow; `data` may also be one file of either kind.

    Raises:
        ValueError: there is neither, pyarrow is missing, or an entry is broken or without answer.
    """
    tables = [data] if data.suffix == ".tsv" else sorted(data.glob("*.tsv")) if data.is_dir() else []
    files = [data] if data.suffix == ".parquet" else sorted(data.rglob("validation-*.parquet"))
    if files:
        entries = [entry for file in files for entry in read_parquet(file)]
    else:
        entries = [_from_table(entry, rows) for rows in map(_by_index, tables) for entry in rows.values()]
    if not entries:
        raise ValueError(
            f"there must be files validation-*.parquet or a table MMMU_DEV_VAL.tsv in {data}, got none; fetch MMMU."
        )
    questions = [_mmmu(entry) for entry in entries if entry.text("id").startswith("validation_")]
    if not questions:
        raise ValueError(f"{data} must hold questions of MMMU's validation split, got other splits; fetch that one.")
    return questions


def read_parquet(path: Path) -> list[Entry]:
    """Return the rows of a parquet file.

    Raises:
        ValueError: pyarrow is not installed.
    """
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        way = "`pip install pyarrow`, or take VLMEvalKit's MMMU_DEV_VAL.tsv"
        raise ValueError(f"{path} needs pyarrow: {way}.") from error
    rows = ParquetFile(path).read().to_pylist()
    return [Entry(row, f"{path}, row {number}") for number, row in enumerate(rows)]


def _mmmu(entry: Entry) -> Question:
    name = entry.text("id")
    listing = entry.row.get("options")
    options = listing if isinstance(listing, dict) else lettered(_listed(entry, entry.text("options")))
    kind = "multiple-choice" if options else "open"
    listed = "".join(f"({letter}) {option}\n" for letter, option in options.items())
    text = "\n\n".join([entry.text("question"), *([listed] if options else []), MMMU_ENDS[kind]])
    answer = entry.text("answer")
    if answer == "?":
        raise ValueError(f"{entry.where} must carry its answer, which the test split hides; take the validation split.")
    return Question(
        id=name,
        parts=_with_pictures(text, entry),
        answers=(answer,) if options else tuple(_accepted(answer)),
        options=options,
        group="_".join(name.split("_")[1:-1]),
        row={key: value for key, value in entry.row.items() if not key.startswith("image")},
    )


def _with_pictures(text: str, entry: Entry) -> tuple[str | Source, ...]:
    """Put pictures where the text names them; those that it does not name stand first."""
    pictures = {int(name[6:]): picture["bytes"] for name, picture in entry.row.items()
                if re.fullmatch(r"image_\d+", name) and picture is not None}  # fmt: skip
    pieces = _PLACE.split(text)
    named = [int(number) for number in pieces[1::2]]
    if missing := [number for number in named if number not in pictures]:
        raise ValueError(f"{entry.where} names picture {missing[0]}, which it does not carry; fetch the file again.")
    before = [picture for number, picture in pictures.items() if number not in named]
    places = [pictures[int(piece)] if i % 2 else piece for i, piece in enumerate(pieces)]
    return (*before, *(place for place in places if place != ""))


def read_choices(data: Path) -> list[Question]:
    """Read a table of VLMEvalKit with options A, B, C, ... and pictures in base64: MMBench, SEED-Bench, RealWorldQA.

    MMBench repeats questions with their options in another order, at an index a multiple of a million higher; such
    belong together (circular evaluation).

    Raises:
        ValueError: there is no such table, or a row is broken or without answer.
    """
    rows = _by_index(find_file(data, ("*.tsv",)))
    questions = []
    for entry in rows.values():
        options = _options(entry.row)
        hint = f"Hint: {entry.row['hint']}\n" if "hint" in entry.row else ""
        listed = "".join(f"{letter}. {option}\n" for letter, option in options.items())
        end = f"Options:\n{listed}Please select the correct answer from the options above. \n" if options else ""
        if "answer" not in entry.row:
            raise ValueError(f"{entry.where} must carry its answer, which test splits hide; take the dev split.")
        questions.append(
            Question(
                id=entry.text("index"),
                parts=(*_pictures(entry, rows), f"{hint}Question: {entry.text('question')}\n{end}"),
                answers=(entry.text("answer"),),
                options=options,
                group=str(entry.row.get("category", "")),
                unit=_unit(entry.text("index")),
                row={key: value for key, value in entry.row.items() if key != "image"},
            )
        )
    return questions


def read_mathvista(data: Path) -> list[Question]:
    """Read MathVista (arXiv:2310.02255): testmini.json and its folder images/.

    Raises:
        ValueError: a file or a picture is missing or broken, or answers are hidden.
    """
    file = find_file(data, ("testmini.json",))
    questions = []
    for key, entry in read_objects(file):
        options = lettered(entry.row.get("choices") or [])
        unit = f" (Unit: {entry.row['unit']})" if entry.row.get("unit") else ""
        hint = MATHVISTA_HINTS[_one_of(entry, "answer_type", tuple(MATHVISTA_HINTS))]
        lines = [f"Hint: Please answer the question and {hint}", f"Question: {entry.text('question')}{unit}"]
        lines += ["Choices:"] if options else []
        lines += [f"({letter}) {option}" for letter, option in options.items()]
        questions.append(
            Question(
                id=key,
                parts=(find_picture(file.parent, entry.text("image"), entry.where), "\n".join(lines)),
                answers=(entry.text("answer"),),
                options=options,
                group=str(entry.row.get("metadata", {}).get("task", "")),
                row=entry.row,
            )
        )
    return questions


def read_ocrbench(data: Path) -> list[Question]:
    """Read OCRBench (arXiv:2305.07895): OCRBench.json and its folder of pictures, OCRBench_Images/.

    Raises:
        ValueError: a file or a picture is missing or broken.
    """
    file = find_file(data, ("OCRBench.json",))
    folder = data if data.is_dir() else data.parent
    questions = []
    for key, entry in read_objects(file):
        answers = entry.row.get("answers")
        questions.append(
            Question(
                id=key,
                parts=(find_picture(folder, entry.text("image_path"), entry.where), entry.text("question")),
                answers=tuple(map(str, answers)) if isinstance(answers, list) else (entry.text("answers"),),
                group=entry.text("type"),
                row=entry.row,
            )
        )
    return questions


def _by_index(path: Path) -> dict[str, Entry]:
    return {entry.text("index"): entry for entry in read_table(path)}


def _pictures(entry: Entry, rows: Mapping[str, Entry]) -> list[bytes]:
    """Decode the pictures of a row, which may name another row that carries them."""
    cell = entry.text("image")
    if len(cell) <= _REFERENCE:
        if cell not in rows:
            raise ValueError(f"{entry.where} takes its picture from row {cell!r}, which is missing; fetch it again.")
        cell = rows[cell].text("image")
    try:
        return [base64.b64decode(text, validate=True) for text in _listed(entry, cell)]
    except binascii.Error as error:
        raise ValueError(f"{entry.where} must carry its picture in base64: {error}; fetch the file again.") from error


def _from_table(entry: Entry, rows: Mapping[str, Entry]) -> Entry:
    """Give a row of VLMEvalKit's MMMU the fields of the authors."""
    pictures = {f"image_{i}": {"bytes": data} for i, data in enumerate(_pictures(entry, rows), start=1)}
    subject = str(entry.row.get("category", "")).replace(" ", "_")
    named = {"id": f"{entry.row.get('split', 'validation')}_{subject}_{entry.text('index')}"}
    row = {key: value for key, value in entry.row.items() if key not in ("image", *ascii_uppercase)}
    return Entry({**named, **row, "options": _options(entry.row), **pictures}, entry.where)


def _options(row: Mapping[str, Any]) -> dict[str, str]:
    return {letter: str(row[letter]) for letter in ascii_uppercase if letter in row}


def _listed(entry: Entry, text: str) -> list[str]:
    """Read a cell that holds a Python list of texts; any other text is a list of one."""
    if not text.startswith("["):
        return [text]
    try:
        return [str(item) for item in ast.literal_eval(text)]
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{entry.where} must hold a list such as ['a', 'b'], got {text[:80]!r}.") from error


def _accepted(answer: str) -> list[str]:
    """Return the answers of an open question: of a Python list of them each, else the text itself."""
    try:
        listed = ast.literal_eval(answer) if answer.startswith("[") else answer
    except (SyntaxError, ValueError):
        listed = answer  # an interval
    return [str(item) for item in listed] if isinstance(listed, list) else [answer]


def _unit(index: str) -> str:
    return str(int(index) % 1_000_000) if index.isdigit() else index


def _one_of(entry: Entry, name: str, allowed: Sequence[str]) -> str:
    value = entry.text(name)
    if value not in allowed:
        raise ValueError(f"{entry.where}: {name} must be one of {', '.join(allowed)}, got {value!r}; fetch it again.")
    return value
