"""Train and score many small models on equal budgets: what `designs.py` and `image_tokenizers.py` share.

Everything stands in a work folder: what is done there is not done again, and a trial that was killed goes on.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import anymodal
from anymodal.data.emoji import scene_names
from anymodal.data.scenes import scene_samples
from anymodal.data.shards import Sample
from anymodal.scoring import judging
from anymodal.scoring.answers import questions_of
from anymodal.scoring.scenes import SceneReader

ROOT = Path(__file__).parents[1]
NAMES, SCENES, HELD_OUT_SCENES = 70, 4000, 160
SCENE_KINDS = ("one", "colours")  # what minutes teach: a concept on a canvas, or on a tile on it
VOCAB_SIZE = 768


def program(work: Path, *words: str) -> float:
    """Run a program of the command line in the work folder and return its seconds; what it says goes to its log.

    Raises:
        RuntimeError: the program failed.
    """
    started = time.perf_counter()
    with (work / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"$ anymodal {' '.join(words)}\n")
        log.flush()
        code = subprocess.call([sys.executable, "-m", "anymodal", *words], cwd=work, stdout=log, stderr=log)
    if code:
        raise RuntimeError(
            f"`anymodal {' '.join(words)}` must succeed, it exited with {code}; read {work / 'log.txt'}."
        )
    return time.perf_counter() - started


def kept(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a file of JSON holds, made first where there is none."""
    if not path.exists():
        made = dict(make())
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_scenes(work: Path, scenes: int) -> None:
    """Pack names and scenes of one object, and learn their text tokenizer."""
    kinds = ["--kinds", json.dumps(list(SCENE_KINDS))]
    folder, common = "scenes", ["--concepts", str(NAMES), *kinds]
    if not (work / folder / "train").exists():
        program(work, "train", "shards", "--emoji", "all", *common, "--scenes", str(scenes), "--out", f"{folder}/train")
    if not (work / folder / "held-out").exists():
        program(
            work, "train", "shards", "--emoji", "scenes", "--split", "held-out", *common,
            "--scenes", str(HELD_OUT_SCENES), "--seed", "1", "--out", f"{folder}/held-out",
        )  # fmt: skip
    if not (work / "text.json").exists():
        program(
            work, "tokenizers", "text", "--shards", f"{folder}/train", "--vocab_size", str(VOCAB_SIZE),
            "--out", "text.json",
        )  # fmt: skip


def encode_scenes(work: Path, image_tokenizer: str, out: str, *, size: int = 64) -> None:
    """Encode these scenes with an image tokenizer, at a size in pixels."""
    for split in ("train", "held-out"):
        program(
            work, "tokenizers", "codes", "--shards", f"scenes/{split}", "--image_tokenizer", image_tokenizer,
            "--size", str(size), "--out", f"{out}/{split}",
        )  # fmt: skip


def learn(work: Path, out: str, codes: str, image_tokenizer: str, options: Sequence[str]) -> float:
    """Train a unified model as the demo does, but for the options, and return the seconds."""
    return program(
        work, "train", "pretrain", "--config", str(ROOT / "configs" / "demo" / "pretrain.yaml"), "--out", out,
        "--data.train", f"{codes}/train", "--data.held_out", f"{codes}/held-out", "--text_tokenizer", "text.json",
        "--image_tokenizer", image_tokenizer, *options,
    )  # fmt: skip


def drawing_scores(pipe: anymodal.Pipeline, samples: Sequence[Sample]) -> dict[str, Any]:
    """Let a trained model draw the names and held-out scenes of `write_scenes`."""
    known = scene_names()[:NAMES]
    prompts = [judging.scene_prompt(sample) for sample in samples]
    overall, *_ = judging.score_held_out(pipe, prompts, SceneReader(known))
    (by_name,) = judging.score_names(pipe, known, known)
    return {
        "parameters": sum(each.numel() for each in pipe.model.parameters()),
        "scenes": overall.value, "scenes_ceiling": overall.ceiling, "names": by_name.value,
    }  # fmt: skip


def answering_scores(pipe: anymodal.Pipeline, samples: Sequence[Sample]) -> dict[str, Any]:
    """Let a trained model answer questions about held-out scenes."""
    answers = judging.score_asked(pipe, questions_of(samples))
    names = [each.name.removesuffix(" questions") for each in answers]
    return {
        "answers": dict(zip(names, (each.value for each in answers), strict=True)),
        "chance": dict(zip(names, (each.chance for each in answers), strict=True)),
    }


def held_out_scenes() -> list[Sample]:
    """Return scenes of combinations that `write_scenes` keeps from training, other ones than the training looks at."""
    return list(
        scene_samples("held-out", count=HELD_OUT_SCENES, seed=1000, concepts=scene_names()[:NAMES], kinds=SCENE_KINDS)
    )


def spread(values: Sequence[float], scale: float = 100) -> str:
    """Write a mean and its sample standard deviation.

    >>> spread([0.5, 0.6])
    '55.0 ± 7.1'
    """
    return f"{scale * mean(values):.1f}" + (f" ± {scale * stdev(values):.1f}" if len(values) > 1 else "")
