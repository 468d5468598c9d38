"""The benches on data that is at hand: what each measures, and how."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anymodal.data.emoji import concepts, emoji_samples, scene_names, split_of_concept
from anymodal.data.pictures import decode_picture
from anymodal.data.samples import picture_bytes
from anymodal.data.scenes import scene_samples
from anymodal.data.shards import Sample
from anymodal.pipeline import Pipeline
from anymodal.scoring import easy_vqa, features, stamps
from anymodal.scoring.answers import questions_of
from anymodal.scoring.failures import Failure
from anymodal.scoring.judging import judge_answers, judge_held_out, judge_names, scene_prompt, validate_checker
from anymodal.scoring.reconstruction import measure
from anymodal.scoring.report import Score
from anymodal.scoring.retrieval import Gallery, rendered, stacked
from anymodal.scoring.scenes import SceneReader

SIDES = (48, 64, 96, 128)
SCENE_SIDES = 32  # scenes are rendered at its multiples
OUTSIDE = "out of domain for the embedded model"


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is scored.

    Args:
        concepts: how many of the scene concepts the model has learned.
        names: which single emoji it has learned to draw: those of the scenes, or all of the training split.
        count: held-out scenes, and at most so many names, stamps and, twice, questions.
        seed: of scenes, of drawings and of what is chosen.
        data: a folder that holds stamps; None is where the system's package puts them.
    """

    concepts: int = 100
    names: Literal["scenes", "all"] = "scenes"
    count: int = 240
    seed: int = 1000
    data: Path | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 2 <= self.concepts <= len(scene_names()):
            raise ValueError(f"concepts must be from 2 to {len(scene_names())}, got {self.concepts}.")
        if self.count < 2:
            raise ValueError(f"count must be at least 2, got {self.count}; 240 makes a table.")

    @property
    def scene_names(self) -> tuple[str, ...]:
        """Return the concepts of the scenes."""
        return scene_names()[: self.concepts]

    @property
    def learned(self) -> tuple[str, ...]:
        """Return the names that the model has learned to draw."""
        return self.scene_names if self.names == "scenes" else _names_of("train")

    def scenes(self, size: int = 64) -> list[Sample]:
        """Return the held-out scenes."""
        made = scene_samples("held-out", count=self.count, seed=self.seed, concepts=self.scene_names, size=size)
        return list(made)


@dataclass(frozen=True)
class Table:
    """Hold what one part of a bench gave; `failures` are the drawings that were judged wrong."""

    title: str
    scores: list[Score]
    failures: list[Failure] | None = None


@dataclass(frozen=True)
class Bench:
    """Say what a bench measures and how; one whose data is `optional` raises FileNotFoundError where it is missing."""

    measures: str
    run: Callable[[Pipeline, BenchConfig], list[Table]]
    optional: bool = False


def _tokenizer(pipe: Pipeline, config: BenchConfig) -> list[Table]:
    tables = []
    for side in SIDES:
        if side % pipe.image_tokenizer.config.down_sampling:
            continue
        sets = {"concepts that no training saw": list(emoji_samples("held-out", size=side))}
        if side % SCENE_SIDES == 0:
            sets["held-out scenes"] = config.scenes(side)
        for title, samples in sets.items():
            pixels = stacked([decode_picture(picture_bytes(sample)) for sample in samples], side)
            tables.append(Table(f"tokenizer, {title}, {side} pixels", measure(pipe.image_tokenizer, pixels).scores()))
    return tables


def _draw_names(pipe: Pipeline, config: BenchConfig) -> list[Table]:
    everything = [concept.name for concept in concepts()]
    learned, unseen = config.learned, _names_of("held-out")
    lists: dict[str, dict[str, Sequence[str]]] = {
        "names, trained": {f" of {len(learned)} trained": learned, f" of all {len(everything):,}": everything},
        "names, never trained": {f" of all {len(everything):,}": everything},
    }
    truth = rendered(everything)
    galleries = [Gallery(truth, by=how) for how in ("pixels", *(["features"] if features.is_installed() else []))]
    tables = []
    for (title, among), names in zip(lists.items(), (learned, unseen), strict=True):
        judged = judge_names(pipe, _some(names, config.count), among, galleries, distance=features.is_installed())
        tables.append(Table(title, judged.scores, judged.failures))
    return tables


def _draw_scenes(pipe: Pipeline, config: BenchConfig) -> list[Table]:
    prompts, reader = [scene_prompt(sample) for sample in config.scenes()], SceneReader(config.scene_names)
    judged = judge_held_out(pipe, prompts, reader, distance=features.is_installed())
    return [
        Table("the checker of scenes, without the model", validate_checker(pipe, prompts, reader)),
        Table("scenes, held-out combinations", judged.scores, judged.failures),
    ]


def _answer(pipe: Pipeline, config: BenchConfig) -> list[Table]:
    sets = {"questions about held-out scenes": config.scenes(),
            "questions about concepts never trained": list(emoji_samples("held-out"))}  # fmt: skip
    tables = []
    for title, samples in sets.items():
        asked = questions_of(samples)
        chosen = sorted(random.Random(config.seed).sample(range(len(asked)), min(2 * config.count, len(asked))))
        tables.append(Table(title, judge_answers(pipe, [asked[i] for i in chosen])))
    return tables


def _answer_easy_vqa(pipe: Pipeline, config: BenchConfig) -> list[Table]:
    asked = easy_vqa.read_questions(easy_vqa.split_folder(), 2 * config.count, config.seed)
    return [Table(f"easy-VQA, test split ({OUTSIDE})", judge_answers(pipe, asked))]


def _name_stamps(pipe: Pipeline, config: BenchConfig) -> list[Table]:
    chosen = stamps.read_stamps(config.data or stamps.FOLDER, config.count, config.seed)
    scores = stamps.score_stamps(pipe, chosen, config.learned)
    return [Table(f"Tux Paint's stamps, named ({OUTSIDE})", scores)]


def _names_of(split: str) -> tuple[str, ...]:
    return tuple(concept.name for concept in concepts() if split_of_concept(concept) == split)


def _some(names: Sequence[str], count: int) -> Sequence[str]:
    """Return at most `count` of the names, at equal distances."""
    return names[:: -(-len(names) // count)]


BENCHES = {
    "tokenizer": Bench("what the image tokenizer keeps of held-out concepts and scenes, at every size", _tokenizer),
    "names": Bench("drawing single emoji by name, and finding them again among all", _draw_names),
    "scenes": Bench("drawing scenes of held-out combinations in GenEval's six categories", _draw_scenes),
    "answers": Bench("answering about held-out scenes and concepts, against chance and the blind model", _answer),
    "easy-vqa": Bench("answering easy-VQA's public test split", _answer_easy_vqa, optional=True),
    "stamps": Bench("naming Tux Paint's stamps", _name_stamps, optional=True),
}
