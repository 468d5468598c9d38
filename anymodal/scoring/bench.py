"""The benches on data that is at hand: what each measures, and how."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from anymodal.data.emoji import Concept, concepts, emoji_samples, find_concept, scene_names, split_of_concept
from anymodal.data.emoji_text import captions
from anymodal.data.english import with_article
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
COUNT = 240
WAYS = ("another name", "name and keywords", "keywords alone, as no caption")
T = TypeVar("T")
OUTSIDE = "out of domain for the embedded model"


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is scored.

    Args:
        concepts: how many of the scene concepts the model has learned.
        names: which single emoji it has learned to draw: all of the training split, or those of the scenes alone.
        count: held-out scenes, and at most so many names, stamps and, twice, questions; None is 240, and every question
            of a public split.
        seed: of scenes, of drawings and of what is chosen.
        data: a folder that holds stamps; None is where the system's package puts them.
    """

    concepts: int = 100
    names: Literal["all", "scenes"] = "all"
    count: int | None = None
    seed: int = 1000
    data: Path | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 2 <= self.concepts <= len(scene_names()):
            raise ValueError(f"concepts must be from 2 to {len(scene_names())}, got {self.concepts}.")
        if self.count is not None and self.count < 2:
            raise ValueError(f"count must be at least 2, got {self.count}; 240 makes a table.")

    @property
    def most(self) -> int:
        """Return how many scenes, names and stamps there are at most."""
        return COUNT if self.count is None else self.count

    @property
    def scene_names(self) -> tuple[str, ...]:
        """Return the concepts of the scenes."""
        return scene_names()[: self.concepts]

    @property
    def learned(self) -> tuple[str, ...]:
        """Return the names that the model has learned to draw."""
        return self.scene_names if self.names == "scenes" else _names_of("train")

    @property
    def drawn(self) -> dict[str, tuple[str, ...]]:
        """Return lists of learned names that are drawn, by how tables call them."""
        of_all = {"trained": self.learned} if self.names == "all" else {}
        return {"of the scenes": self.scene_names, **of_all}

    def scenes(self, size: int = 64) -> list[Sample]:
        """Return the held-out scenes."""
        made = scene_samples("held-out", count=self.most, seed=self.seed, concepts=self.scene_names, size=size)
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
    galleries, of_all = _galleries()
    lists: dict[str, tuple[Sequence[str], dict[str, Sequence[str]]]] = {
        f"names, {title}": (names, {f" of {len(names):,} {title}": names, **of_all})
        for title, names in config.drawn.items()
    }
    lists["names, never trained"] = _names_of("held-out"), of_all
    tables = []
    for title, (names, among) in lists.items():
        judged = judge_names(
            pipe, _some(names, config.most), among, galleries, seed=config.seed, distance=features.is_installed()
        )
        tables.append(Table(title, judged.scores, judged.failures))
    return tables


def _draw_by_keywords(pipe: Pipeline, config: BenchConfig) -> list[Table]:
    galleries, of_all = _galleries()
    tables = []
    for title, names in config.drawn.items():
        scores = list[Score]()
        asked = [(how, name, text) for name in names for how, text in _ways(find_concept(name))]
        for how in [each for each in WAYS if any(way == each for way, *_ in asked)]:
            some = _some([(name, text) for way, name, text in asked if way == how], config.most)
            drawn, texts = zip(*some, strict=True)
            judged = judge_names(pipe, drawn, of_all, galleries, texts=texts, seed=config.seed)
            scores += [replace(score, name=f"{how}: {score.name}") for score in judged.scores]
        tables.append(Table(f"other names and keywords, {title}", scores))
    return tables


def _ways(concept: Concept) -> Iterator[tuple[str, str]]:
    """Yield how else a concept is asked for, by WAYS: training has every one but the last."""
    yield from ((WAYS[0], with_article(alias)) for alias in concept.aliases[:1])
    for caption in captions(concept):
        if caption.startswith(f"{concept.name}, "):
            yield from zip(WAYS[1:], (caption, caption.partition(", ")[2]), strict=True)
            return


def _galleries() -> tuple[list[Gallery], dict[str, Sequence[str]]]:
    """Return where all concepts are looked for, and their list by its title."""
    everything = [concept.name for concept in concepts()]
    truth = rendered(everything)
    galleries = [Gallery(truth, by=how) for how in ("pixels", *(["features"] if features.is_installed() else []))]
    return galleries, {f" of all {len(everything):,}": everything}


def _draw_scenes(pipe: Pipeline, config: BenchConfig) -> list[Table]:
    prompts, reader = [scene_prompt(sample) for sample in config.scenes()], SceneReader(config.scene_names)
    judged = judge_held_out(pipe, prompts, reader, seed=config.seed, distance=features.is_installed())
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
        chosen = sorted(random.Random(config.seed).sample(range(len(asked)), min(2 * config.most, len(asked))))
        tables.append(Table(title, judge_answers(pipe, [asked[i] for i in chosen])))
    return tables


def _answer_easy_vqa(pipe: Pipeline, config: BenchConfig) -> list[Table]:
    most = None if config.count is None else 2 * config.count
    asked = easy_vqa.read_questions(easy_vqa.split_folder(), most, config.seed)
    return [Table(f"easy-VQA, test split ({OUTSIDE})", judge_answers(pipe, asked))]


def _name_stamps(pipe: Pipeline, config: BenchConfig) -> list[Table]:
    chosen = stamps.read_stamps(config.data or stamps.FOLDER, config.most, config.seed)
    scores = stamps.score_stamps(pipe, chosen, config.learned)
    return [Table(f"Tux Paint's stamps, named ({OUTSIDE})", scores)]


def _names_of(split: str) -> tuple[str, ...]:
    return tuple(concept.name for concept in concepts() if split_of_concept(concept) == split)


def _some(given: Sequence[T], count: int) -> Sequence[T]:
    """Return at most `count` of those given, at equal distances."""
    return given[:: max(1, -(-len(given) // count))]


BENCHES = {
    "tokenizer": Bench("what the image tokenizer keeps of held-out concepts and scenes, at every size", _tokenizer),
    "names": Bench("drawing single emoji by name, and finding them again among all", _draw_names),
    "keywords": Bench("drawing single emoji by other names and by keywords", _draw_by_keywords),
    "scenes": Bench("drawing scenes of held-out combinations in GenEval's six categories", _draw_scenes),
    "answers": Bench("answering about held-out scenes and concepts, against chance and the blind model", _answer),
    "easy-vqa": Bench("answering easy-VQA's public test split", _answer_easy_vqa, optional=True),
    "stamps": Bench("naming Tux Paint's stamps", _name_stamps, optional=True),
}
