"""Kill runs anywhere, stop them, resume them with other workers: every loss and every weight is as if nothing was."""

import csv
import hashlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anymodal.tokens.text import TextTokenizer

CLOCKS = {"tokens_per_second", "pictures_per_second", "data_wait_share", "mfu"}
EPOCH_STEPS = 12  # of the text task, which sees 2 of 24 samples a step
TASKS = {"draw": 4, "answer": 4, "text": 2}
ORPHANS = (".partial", ".before")
IMAGE_TOKENIZER = (
    *("--tokenizer.channels", "[8]", "--tokenizer.norm_groups", "4", "--tokenizer.blocks", "1"),
    *("--tokenizer.latent_channels", "8", "--tokenizer.quantizer.codebook_size", "16", "--losses.size", "16"),
    *("--run.batch_size", "4", "--run.precision", "float32", "--run.log_every", "1", "--run.checkpoint_every", "2"),
    *("--run.validate_every", "4", "--run.validation_steps", "1", "--optimizer.warmup_steps", "2"),
)
ADVERSARIAL = ("--losses.adversarial_weight", "0.5", "--losses.adversarial_start", "3", "--losses.lecam_weight", "0.3")
OTHERS = {
    "bf16": ("--run.precision", "bf16"),
    "muon": ("--optimizer.name", "muon"),
    "bf16 muon": ("--run.precision", "bf16", "--optimizer.name", "muon"),
}
"""Beside float32 and AdamW; all runs keep an average."""


def logged(out: Path) -> list[dict[str, str]]:
    """Return all that was logged, without what a clock gave."""
    with (out / "logs" / "metrics.csv").open(newline="") as file:
        rows = [
            {key: value for key, value in row.items() if value and key not in CLOCKS} for row in csv.DictReader(file)
        ]
    return sorted(rows, key=lambda row: (int(row["step"]), sorted(row)))


def weights(out: Path) -> str:
    """Return the digest of all weights of the folder that a run leaves."""
    files = sorted((out / ("model" if (out / "model").exists() else "image_tokenizer")).rglob("*.safetensors"))
    assert files
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def diary(out: Path) -> list[dict[str, Any]]:
    path = out / "diary.jsonl"  # a run may be killed before its first step, or before it has written that down
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def seen(out: Path, text: TextTokenizer) -> dict[str, list[list[int]]]:
    """Return the samples that each task saw in every step that counted: the last time that it was begun."""
    steps = {entry["step"]: entry["documents"] for entry in diary(out)}
    found: dict[str, list[list[int]]] = {task: [] for task in TASKS}
    names = {number: name for name, number in text.specials.items()}
    for _, documents in sorted(steps.items()):
        told = {task: list[int]() for task in TASKS}
        for ids in documents:
            words = text.decode([number for number in ids if number < text.vocab_size and number not in names])
            number = re.search(r"[nq] (\d+) \.", words)
            assert number is not None, words
            drawn = any(each >= text.vocab_size for each in ids)
            told["draw" if drawn else "answer" if "q " in words else "text"].append(int(number[1]))
        for task, numbers in told.items():
            found[task].append(numbers)
    return found


def orphans(out: Path) -> list[str]:
    return sorted(path.name for path in out.rglob("*") if path.name.endswith(ORPHANS))


def assert_same(out: Path, whole: Path) -> None:
    """Check that a run that was harmed came to what the one that was not came to."""
    assert logged(out) == logged(whole)
    assert weights(out) == weights(whole)
    assert orphans(out) == []
    given = {entry["step"]: entry["digest"] for entry in diary(whole)}
    assert all(entry["digest"] == given[entry["step"]] for entry in diary(out)), "each attempt sees the same batches"
    assert {entry["step"] for entry in diary(out)} == set(given)


@pytest.fixture(scope="module")
def steps(long: bool) -> int:
    return (6 if long else 2) * EPOCH_STEPS


@pytest.fixture(scope="module")
def whole(programs: Any, steps: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run what nobody harms."""
    out = tmp_path_factory.mktemp("whole")
    ended = programs(out, "--run.steps", str(steps), diary=True)
    assert ended.code == 0, ended.log
    return out


def test_each_sample_comes_once_an_epoch(whole: Path, toy: Any, steps: int) -> None:
    found = seen(whole, TextTokenizer.load(toy.text_tokenizer))
    for task, share in TASKS.items():
        numbers = list(itertools.chain(*found[task]))
        assert len(numbers) == share * steps
        epochs = [numbers[start : start + 24] for start in range(0, len(numbers), 24)]
        assert all(sorted(epoch) == list(range(24)) for epoch in epochs), task
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs), "epochs differ in their order"


def fault(choice: random.Random, number: int, folder: Path, most_bytes: int) -> dict[str, Any]:
    """Choose where to kill: anywhere in time, within a file that is written, or between two operations on files."""
    kinds: list[dict[str, Any]] = [
        {"kind": "kill", "delay_s": choice.uniform(0, 0.1)},
        {"kind": "kill_in_file", "bytes": choice.randrange(20_000, most_bytes)},
        {"kind": "kill", "delay_s": choice.uniform(0, 0.1)},
        {"kind": "kill_at_operation", "number": choice.randrange(25), "folder": str(folder)},
    ]
    chosen = kinds[number % 4]
    return {"after": choice.randrange(-1 if chosen["kind"] == "kill_at_operation" else 0, 5), **chosen}


def kill(
    programs: Any, whole: Path, folder: Path, steps: int, count: int, most_bytes: int, tally: Any
) -> tuple[Counter[str], Counter[Any]]:
    """Kill runs so many times, resume each to its end, and count the kills by kind, and by run and epoch."""
    choice = random.Random(0)
    killed: Counter[str] = Counter()
    in_epoch: Counter[tuple[str, int]] = Counter()
    runs = (folder / str(number) for number in itertools.count())
    out = next(runs)
    for number in itertools.count():
        harm = fault(choice, number, out, most_bytes) if killed.total() < count else {}
        workers = (0, 2, 0, 4)[number // 4 % 4]
        ended = programs(out, "--run.steps", str(steps), "--data.num_workers", str(workers), diary=True, **harm)
        assert not ended.left, ended.log
        if ended.code == 0:  # it came to its end before it was hit
            assert_same(out, whole)
            tally.survived = tally.made
            if killed.total() >= count:
                break
            out = next(runs)
            continue
        assert ended.code < 0, ended.log
        killed[harm["kind"]] += 1
        tally.made += 1
        if begun := diary(out):
            in_epoch[str(out), begun[-1]["step"] // EPOCH_STEPS] += 1
    print(dict(killed), "kills;", max(in_epoch.values()), "of them in one epoch")
    return killed, in_epoch


def test_kills_change_nothing(programs: Any, whole: Path, tmp_path: Path, steps: int, long: bool, tally: Any) -> None:
    count = 50 if long else 20
    killed, in_epoch = kill(programs, whole, tmp_path, steps, count, 900_000, tally)
    assert min(killed.values()) >= count // 5
    assert max(in_epoch.values()) >= 5


@pytest.mark.parametrize("words", OTHERS.values(), ids=OTHERS)
def test_kills_change_no_other_arithmetic(
    programs: Any, tmp_path: Path, long: bool, tally: Any, words: tuple[str, ...]
) -> None:
    steps, count = EPOCH_STEPS, 50 if long else 4
    run = replace(programs, words=[*programs.words, *words])
    ended = run(tmp_path / "whole", "--run.steps", str(steps), diary=True)
    assert ended.code == 0, ended.log
    killed, _ = kill(run, tmp_path / "whole", tmp_path, steps, count, 900_000, tally)
    assert len(killed) >= (3 if long else 1)


@pytest.mark.parametrize("losses", [(), ADVERSARIAL], ids=["reconstructing", "adversarial"])
def test_kills_change_no_image_tokenizer(
    programs: Any, toy: Any, tmp_path: Path, long: bool, tally: Any, losses: tuple[str, ...]
) -> None:
    steps, count = 12, 50 if long else 8
    data = ("--data.train", toy.plain, "--data.held_out", toy.plain)
    run = replace(programs, words=["tokenizers", "image", *data, *IMAGE_TOKENIZER, *losses])
    ended = run(tmp_path / "whole", "--run.steps", str(steps), diary=True)
    assert ended.code == 0, ended.log
    killed, _ = kill(run, tmp_path / "whole", tmp_path, steps, count, 100_000, tally)
    assert len(killed) == 3
    assert min(killed.values()) >= count // 5


def test_a_stop_is_exact_with_any_number_of_workers(
    programs: Any, whole: Path, tmp_path: Path, steps: int, tally: Any
) -> None:
    told = [(2, "tell_all", signal.SIGTERM), (4, "tell_all", signal.SIGINT), (0, "tell", signal.SIGTERM)]
    reached = 0
    for workers, kind, number in told:
        words = ["--run.steps", str(steps), "--data.num_workers", str(workers)]
        ended = programs(tmp_path, *words, diary=True, after=2, kind=kind, signal=int(number))
        assert ended.code == (130 if number == signal.SIGINT else 75), ended.log
        assert "stopped; the same command resumes" in ended.log
        assert ended.log.count("stopping at the end of this step") == 1, "the workers leave it to their parent"
        assert not ended.left
        tally.made += 1
        reached += 3  # the signal came within the third step
        newest = max(path.name for path in (tmp_path / "checkpoints").glob("*.ckpt"))
        assert newest == f"step-{reached:08d}.ckpt"
    ended = programs(tmp_path, "--run.steps", str(steps), "--data.num_workers", "2", diary=True)
    assert ended.code == 0, ended.log
    assert_same(tmp_path, whole)
    tally.survived = tally.made


@pytest.mark.usefixtures("tally")
def test_the_program_itself_stops_and_resumes(
    programs: Any, whole: Path, tmp_path: Path, root: Path, steps: int
) -> None:
    """Once with an interpreter of its own, from its start to its end."""
    command = [sys.executable, "-m", "anymodal", *programs.words, "--run.steps", str(steps), "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while process.poll() is None and not list((tmp_path / "checkpoints").glob("*.ckpt")):
        time.sleep(0.02)
    process.terminate()
    told, log = process.communicate(timeout=60)
    assert process.returncode == 75, log
    assert told == f"{tmp_path}: stopped; the same command resumes\n"
    assert "stopping at the end of this step" in log
    ended = programs(tmp_path, "--run.steps", str(steps))
    assert ended.code == 0, ended.log
    assert logged(tmp_path) == logged(whole)
    assert weights(tmp_path) == weights(whole)
