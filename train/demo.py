"""Go the whole road in minutes: shards, tokenizers, a unified model, pictures, answers, scores, a report.

    anymodal train demo --out demo
    anymodal train demo --out small --concepts 12 --minutes 1

It starts from nothing and ends with OUT/report.html and a model folder OUT/training/model for `anymodal sample`. How
many steps the two trainings take follows from the speed of this machine and --minutes; shapes and rates stand in
configs/demo. A second run in the same folder starts anew.
"""

import random
import shutil
import sys
import time
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anymodal.data.index import ShardIndex
    from anymodal.learning.config import OptimizerConfig, RunConfig
    from anymodal.learning.timing import Training
    from anymodal.pipeline import Pipeline
    from anymodal.scoring.answers import Asked
    from anymodal.scoring.report import Score, Stage

MARK = ".anymodal-demo"
MADE = {MARK, "embedded.png", "data", "tokenizer.json", "tokenizer", "training", "report.html"}
LEAST_STEPS, ENOUGH_STEPS, LEAST_BATCH = 4, 60, 8
SCENE_KINDS = ("one", "colours")  # what minutes teach: a concept on a canvas, or on a tile on it; pairs take hours
EMBEDDED_PROMPTS = ("a rabbit", "a banana on a blue background", "two cats", "a star on a red tile")
SCENES_A_MINUTE, MIN_SCENES, MAX_SCENES, HELD_OUT_SCENES = 600, 60, 6000, 160
TOKENIZER_SHARE, SCORING_SHARE = 0.2, 0.09  # of the time that is left, of all time
VOCAB_SIZE = 1024
MIN_SCORED, MAX_SCORED = 16, 120


@dataclass
class Road:
    """Hold where the demo stands: its folder, its clock, what it did."""

    out: Path
    minutes: float
    names: tuple[str, ...]
    seed: int
    started: float = field(default_factory=time.perf_counter)
    stages: "list[Stage]" = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """Return what is left of the time."""
        return max(0.0, self.started + 60 * self.minutes - time.perf_counter())

    def finish(self, name: str, detail: str) -> None:
        """Close a stage: all time since the one before belongs to it."""
        from anymodal.scoring.report import Stage

        spent = time.perf_counter() - self.started - sum(stage.seconds for stage in self.stages)
        self.stages.append(Stage(name, spent, detail))
        sys.stderr.write(f"{name:<16}{spent:6.1f} s  {detail}\n")


def main(*, out: Path = Path("demo"), minutes: float = 9.0, concepts: int = 70, seed: int = 0) -> int:
    """Run the demo.

    Args:
        out: folder of everything that the demo makes.
        minutes: time for the whole road; the trainings take what the other stages leave.
        concepts: how many of the emoji that scenes are made of are learned.
        seed: of data, weights and pictures.
    """
    from anymodal.data.emoji import scene_names
    from anymodal.pipeline import from_pretrained

    known = scene_names()
    if not 4 <= concepts <= len(known):
        raise ValueError(f"concepts must be from 4 to {len(known)}, got {concepts}; 70 suit ten minutes.")
    if minutes <= 0:
        raise ValueError(f"minutes must be positive, got {minutes}.")
    road = Road(out, minutes, known[:concepts], seed)
    clean(out)
    show_embedded(road)
    write_data(road)
    code = learn_pictures(road)
    if code:
        return code
    encode(road)
    code = learn_all(road)
    if code:
        return code
    pipe = from_pretrained(out / "training" / "model")
    report(road, pipe)
    return 0


def clean(out: Path) -> None:
    """Empty the folder of what an earlier demo made.

    Raises:
        ValueError: the folder holds anything else.
    """
    there = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    strange = [name for name in there if name not in MADE] if MARK in there else there
    if strange:
        raise ValueError(
            f"{out} must be new, empty or an earlier demo's, but it holds {strange[0]}; name another --out."
        )
    for name in there:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("What stands here was made by `anymodal train demo`; it removes it when it runs again.\n")


def show_embedded(road: Road) -> None:
    """Let the embedded model draw, and describe its own drawings, before anything is learned."""
    from anymodal.data.sheet import contact_sheet
    from anymodal.pipeline import from_pretrained

    pipe = from_pretrained("emoji")
    drawn = pipe.generate_image(list(EMBEDDED_PROMPTS), seed=road.seed)
    said = pipe.answer(drawn, ["Describe the picture."] * len(drawn))
    captions = [f"{prompt}: {answer!r}" for prompt, answer in zip(EMBEDDED_PROMPTS, said, strict=True)]
    contact_sheet(drawn, captions=captions, scale=3).save(road.out / "embedded.png")
    road.finish("embedded model", f"drew and described: {road.out / 'embedded.png'}")


def write_data(road: Road) -> None:
    """Write shards of names and scenes, and learn the text tokenizer from them."""
    from itertools import chain

    from anymodal.data.emoji import emoji_samples
    from anymodal.data.index import ShardIndex
    from anymodal.data.progress import track
    from anymodal.data.scenes import scene_samples
    from anymodal.data.shards import write_shards
    from anymodal.data.texts import texts_of
    from anymodal.tokens.text import TextTokenizer

    count = max(MIN_SCENES, min(MAX_SCENES, int(SCENES_A_MINUTE * road.minutes)))
    held_out = min(HELD_OUT_SCENES, count // 2)
    of_these: dict[str, Any] = {"seed": road.seed, "concepts": road.names, "kinds": SCENE_KINDS}
    scenes = scene_samples("train", count=count, **of_these)
    splits = {
        "train": chain(emoji_samples("train", concepts=road.names), scenes),
        "held-out": scene_samples("held-out", count=held_out, **of_these),
    }
    for split, samples in splits.items():
        pattern = str(road.out / "data" / split / "%06d.tar")
        write_shards(track(samples, f"packing {split}"), pattern, pictures_verified=True)
    road.finish("shards", f"{len(road.names)} names, {count:,} scenes, {held_out} held-out scenes")
    index = ShardIndex.open(str(road.out / "data" / "train" / "*.tar"))
    tokenizer = TextTokenizer.learn(chain.from_iterable(texts_of(index.read(i)) for i in range(len(index))), VOCAB_SIZE)
    tokenizer.save(road.out / "tokenizer.json")
    road.finish("text tokenizer", f"{tokenizer.vocab_size} ids of byte-level BPE")


def settings(road: Road, program: str) -> dict[str, Any]:
    """Read a configuration of configs/demo, its folders moved to this run's."""
    import yaml

    from anymodal.commands import find_root
    from anymodal.options import find_config

    read = yaml.safe_load(find_config(f"configs/demo/{program}.yaml", find_root()).read_text(encoding="utf-8"))
    coded = "coded-" if program == "pretrain" else ""
    for key, split in (("train", "train"), ("held_out", "held-out")):
        read["data"][key] = str(road.out / "data" / f"{coded}{split}" / "*.tar")
    read["run"]["seed"] = road.seed
    return dict(read)


def fitted_run(road: Road, train: "Training", run: "RunConfig", seconds: float) -> "RunConfig":
    """Return `run` with as many steps as fit into `seconds`, at most those it came with.

    Where too few would fit, its batches become smaller: a handful of large steps teaches nothing.
    """
    from dataclasses import replace

    from anymodal.learning.timing import seconds_a_step, steps_within

    end = road.seconds_left - seconds
    each = seconds_a_step(train, run, road.out)
    steps = steps_within(road.seconds_left - end, each, least=LEAST_STEPS, most=run.steps)
    if steps < min(ENOUGH_STEPS, run.steps):
        run = replace(run, batch_size=max(LEAST_BATCH, run.batch_size * steps // ENOUGH_STEPS))
        each = seconds_a_step(train, run, road.out)
        steps = steps_within(road.seconds_left - end, each, least=LEAST_STEPS, most=run.steps)
    sys.stderr.write(f"{'':<16}{each:6.2f} s a step of {run.batch_size}: {steps} steps\n")
    every = max(1, steps // 6)
    return replace(
        run, steps=steps, sample_every=0, validate_every=every, log_every=max(1, steps // 80), checkpoint_every=steps
    )


def learn_pictures(road: Road) -> int:
    """Train the image tokenizer."""
    import torch

    from anymodal.configuration import from_dict
    from anymodal.data.config import DataConfig
    from anymodal.learning.config import ImageObjectiveConfig, OptimizerConfig, RunConfig
    from anymodal.learning.image_run import train_image_tokenizer
    from anymodal.tokens.image import ImageTokenizer
    from anymodal.tokens.image_config import ImageTokenizerConfig
    from anymodal.tokens.weights import num_parameters

    read = settings(road, "image_tokenizer")
    config = from_dict(ImageTokenizerConfig, read["tokenizer"], "tokenizer")
    data = from_dict(DataConfig, read["data"], "data")
    losses = from_dict(ImageObjectiveConfig, read["losses"], "losses")

    def train(run: RunConfig, out: Path, show: Any = None) -> int:
        torch.manual_seed(run.seed)
        optimizer = warmed(from_dict(OptimizerConfig, read["optimizer"], "optimizer"), run.steps)
        built = ImageTokenizer(config)
        road.facts["Image tokenizer"] = f"{num_parameters(built):,} parameters, {built.codebook_size:,} codes"
        return train_image_tokenizer(built, data=data, losses=losses, optimizer=optimizer, run=run, out=out, show=show)

    run = from_dict(RunConfig, read["run"], "run")
    run = fitted_run(road, train, run, TOKENIZER_SHARE * road.seconds_left)
    code = train(run, road.out / "tokenizer")
    road.finish("image tokenizer", f"{run.steps} steps of {run.batch_size} pictures")
    return code


def encode(road: Road) -> None:
    """Write the shards again with the codes of their pictures."""
    from anymodal.data.coding import coded_samples
    from anymodal.data.index import ShardIndex
    from anymodal.data.progress import track
    from anymodal.data.shards import write_shards
    from anymodal.tokens.image import ImageTokenizer

    tokenizer = ImageTokenizer.from_pretrained(road.out / "tokenizer" / "image_tokenizer")
    count = 0
    for split in ("train", "held-out"):
        index = ShardIndex.open(str(road.out / "data" / split / "*.tar"))
        samples = coded_samples(index, range(len(index)), tokenizer=tokenizer, size=64)
        pattern = str(road.out / "data" / f"coded-{split}" / "%06d.tar")
        write_shards(track(samples, f"encoding {split}"), pattern, pictures_verified=True)
        count += len(index)
    road.finish("codes", f"of {count:,} pictures")


def learn_all(road: Road) -> int:
    """Train the unified model: drawing through codes, answering through the understanding path."""
    import torch

    from anymodal.configuration import from_dict
    from anymodal.data.config import DataConfig
    from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
    from anymodal.learning.unified_run import new_model, train_unified
    from anymodal.model.config import AnyModalConfig
    from anymodal.tokens.config import ChatTemplate
    from anymodal.tokens.weights import num_parameters

    read = settings(road, "pretrain")
    data, stage = from_dict(DataConfig, read["data"], "data"), from_dict(StageConfig, read["stage"], "stage")
    tokenizers = {
        "text_tokenizer": road.out / "tokenizer.json",
        "image_tokenizer": road.out / "tokenizer" / "image_tokenizer",
    }

    def train(run: RunConfig, out: Path, show: Any = None) -> int:
        torch.manual_seed(run.seed)
        optimizer = warmed(from_dict(OptimizerConfig, read["optimizer"], "optimizer"), run.steps)
        config = from_dict(AnyModalConfig, read["model"], "model")
        parts = new_model(config, data, template=ChatTemplate(), **tokenizers)
        parts.generation = read["generation"]
        road.facts["Model"] = f"{num_parameters(parts.model):,} parameters"
        return train_unified(parts, data=data, stage=stage, optimizer=optimizer, run=run, out=out, show=show)

    seconds = road.seconds_left - SCORING_SHARE * 60 * road.minutes
    run = fitted_run(road, train, from_dict(RunConfig, read["run"], "run"), seconds)
    code = train(run, road.out / "training")
    road.finish("unified model", f"{run.steps} steps of {run.batch_size} documents")
    return code


def warmed(optimizer: "OptimizerConfig", steps: int) -> "OptimizerConfig":
    """Shorten the warm-up of an optimizer for a short run."""
    from dataclasses import replace

    return replace(optimizer, warmup_steps=max(1, min(optimizer.warmup_steps, steps // 8)))


def report(road: Road, pipe: "Pipeline") -> None:
    """Draw, answer, score, and write the page."""
    from anymodal.data.index import ShardIndex
    from anymodal.scoring import judging, machine
    from anymodal.scoring.answers import questions_of
    from anymodal.scoring.charts import read_curves
    from anymodal.scoring.report import Report, save_report
    from anymodal.scoring.scenes import SceneReader

    reader = SceneReader(road.names)
    index = ShardIndex.open(str(road.out / "data" / "held-out" / "*.tar"))
    begun = time.perf_counter()
    named = [judging.name_prompt(name) for name in road.names[:: max(1, len(road.names) // 4)][:4]]
    prompts = [*named, *(judging.scene_prompt(index.read(i)) for i in of_every_kind(index, 4))]
    drawings = judging.show_drawings(pipe, prompts, reader, memorised=[prompt.text for prompt in named])
    answers = judging.show_answers(pipe, varied(questions_of(index.read(i) for i in range(len(index))), 8))
    road.finish("pictures", f"{len(drawings)} drawn, {len(answers)} questions answered")

    affordable = int(0.3 * road.seconds_left / (time.perf_counter() - begun) * (len(drawings) + len(answers)))
    scores = score(road, pipe, index, max(MIN_SCORED, min(MAX_SCORED, affordable)))
    road.finish("scores", "names, held-out scenes, questions")

    charts = {
        "Image tokenizer: reconstruction loss": read_curves(
            road.out / "tokenizer" / "logs" / "metrics.csv",
            {"train_loss": "training", "held_out_loss": "held out"},
        ),
        "Unified model: loss a token": read_curves(
            road.out / "training" / "logs" / "metrics.csv",
            {"train_image_loss": "codes, training", "train_text_loss": "text, training",
             "held_out_image_loss": "codes, held out", "held_out_text_loss": "text, held out"},
        ),
    }  # fmt: skip
    road.facts |= {**machine.facts(), "Peak memory": f"{machine.peak_memory_bytes() / 2**30:.2f} GiB"}
    lead = (
        f"{sum(stage.seconds for stage in road.stages) / 60:.1f} minutes ago there was no tokenizer and no model. "
        f"Now one model draws {len(road.names)} emoji and scenes of them, and answers questions about pictures."
    )
    page = Report(
        title="A unified model, trained from nothing",
        lead=lead,
        drawings=tuple(drawings),
        answers=tuple(answers),
        scores={title: tuple(found) for title, found in scores.items()},
        charts={title: tuple(curves) for title, curves in charts.items()},
        stages=tuple(road.stages),
        facts=road.facts,
    )
    save_report(page, road.out / "report.html")
    for title, found in scores.items():
        sys.stdout.write(f"{title}\n")
        sys.stdout.writelines(f"  {each.describe()}\n" for each in found)
    sys.stdout.write(f"{road.out / 'report.html'}\n")


def score(road: Road, pipe: "Pipeline", index: "ShardIndex", count: int) -> "dict[str, list[Score]]":
    """Score about `count` names, `count` scenes and three times as many questions."""
    from anymodal.scoring import judging
    from anymodal.scoring.answers import questions_of
    from anymodal.scoring.features import is_installed
    from anymodal.scoring.scenes import SceneReader

    by = ["pixels", *(["features"] if is_installed() else [])]
    if len(by) == 1:
        sys.stderr.write("no scores by features: `pip install anymodal[test]` brings the network that they need\n")
    names = road.names[:: -(-len(road.names) // count)]
    samples = [index.read(i) for i in range(len(index))]
    prompts = [judging.scene_prompt(sample) for sample in samples[:count]]
    asked = varied(questions_of(samples), 3 * count)
    return {
        "Names, memorised": judging.score_names(pipe, names, road.names, by=by),
        "Scenes with held-out combinations": judging.score_held_out(pipe, prompts, SceneReader(road.names)),
        "Questions about held-out scenes": judging.score_asked(pipe, asked),
    }


def of_every_kind(index: "ShardIndex", count: int) -> list[int]:
    """Return the first `count` samples, the kinds in turn."""
    from anymodal.data.samples import details_of

    queues: dict[str, list[int]] = {}
    for number in range(len(index)):
        queues.setdefault(str(details_of(index.read(number))["truth"]["kind"]), []).append(number)
    turns = zip_longest(*(queue for _, queue in sorted(queues.items())))
    return [number for turn in turns for number in turn if number is not None][:count]


def varied(asked: "Sequence[Asked]", count: int) -> "list[Asked]":
    """Take `count` questions, the types in turn, from here and there; a type with one answer alone asks nothing."""
    queues: dict[str, list[Asked]] = {}
    for each in asked:
        queues.setdefault(each.type, []).append(each)
    queues = {kind: queue for kind, queue in queues.items() if len({each.answer for each in queue}) > 1}
    for _, queue in sorted(queues.items()):
        random.Random(count).shuffle(queue)
    turns = zip_longest(*(queue for _, queue in sorted(queues.items())))
    return [each for turn in turns for each in turn if each is not None][:count]
