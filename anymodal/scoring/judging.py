"""Let a model draw and answer, and score it: every share next to chance and to the ceiling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from anymodal.data.canvas import Scene, render
from anymodal.data.english import with_article
from anymodal.data.samples import details_of
from anymodal.data.shards import Sample
from anymodal.pipeline import Pipeline
from anymodal.scoring.answers import Asked, TypeScore, ask, ask_blind, is_right, score_answers
from anymodal.scoring.failures import Failure
from anymodal.scoring.features import features
from anymodal.scoring.reconstruction import frechet_distance
from anymodal.scoring.report import Answered, Drawing, Score
from anymodal.scoring.retrieval import Gallery, rendered, stacked
from anymodal.scoring.scenes import SceneReader, compare, score_scenes

BATCH = 32
LEAST_TRUTH, LEAST_PASSED, MOST_SHUFFLED = 99, 97, 2  # percent: what a checker worth the name reaches
HOW = {"pixels": "nearest concept by pixels", "features": "nearest concept by ImageNet features"}


@dataclass(frozen=True)
class Prompt:
    """Hold a prompt with the scene that it asks for."""

    text: str
    scene: Scene


def name_prompt(name: str) -> Prompt:
    """Ask for one concept by its name, as training did."""
    return Prompt(with_article(name), Scene.from_truth({
        "kind": "one", "background": "white", "objects": [{"name": name, "cell": "centre", "tile": None}],
    }))  # fmt: skip


def scene_prompt(sample: Sample) -> Prompt:
    """Ask for the scene of a sample by its plainest caption.

    Raises:
        ValueError: the sample carries no ground truth.
    """
    details = details_of(sample)
    if "truth" not in details:
        raise ValueError(f"a sample must carry its ground truth to be scored, {sample.key!r} does not; use scenes.")
    return Prompt(details["captions"][0], Scene.from_truth(details["truth"]))


def draw(pipe: Pipeline, prompts: Sequence[Prompt], seed: int = 0, **options: Any) -> list[Image.Image]:
    """Draw one picture a prompt, some at a time; prompt i has seed `seed` + i, `options` are of `generate_image`."""
    texts, drawn = [prompt.text for prompt in prompts], list[Image.Image]()
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        drawn += pipe.generate_image(part, seed=range(seed + start, seed + start + len(part)), **options)
    return drawn


def show_drawings(
    pipe: Pipeline, prompts: Sequence[Prompt], reader: SceneReader, *, memorised: Sequence[str] = ()
) -> list[Drawing]:
    """Draw prompts beside their truth; those listed in `memorised` were trained on as they are."""
    real = [render(prompt.scene) for prompt in prompts]
    shown = []
    for prompt, truth, again, drawn in zip(prompts, real, pipe.reconstruct(real), draw(pipe, prompts), strict=True):
        right = compare(reader.read(drawn), prompt.scene).right
        shown.append(Drawing(prompt.text, truth, again, drawn, prompt.text in memorised, right))
    return shown


def show_answers(pipe: Pipeline, asked: Sequence[Asked]) -> list[Answered]:
    """Answer questions beside their truth."""
    return [
        Answered(each.image, each.question, answer, each.answer, is_right(answer, each.answer))
        for each, answer in zip(asked, ask(pipe, asked), strict=True)
    ]


@dataclass(frozen=True)
class Judged:
    """Hold the scores of drawings and those that were wrong, in the order of their prompts."""

    scores: list[Score]
    failures: list[Failure]


def score_names(
    pipe: Pipeline, names: Sequence[str], concepts: Sequence[str], *, by: Sequence[str] = ("pixels",)
) -> list[Score]:
    """Draw names and look for the nearest among `concepts`, by pixels or features."""
    truth = rendered(concepts)
    return judge_names(pipe, names, {"": concepts}, [Gallery(truth, by=how) for how in by]).scores


def judge_names(
    pipe: Pipeline,
    names: Sequence[str],
    among: Mapping[str, Sequence[str]],
    galleries: Sequence[Gallery],
    *,
    texts: Sequence[str] | None = None,
    seed: int = 0,
    distance: bool = False,
) -> Judged:
    """Draw names and look in every gallery for the nearest among lists of concepts, whose titles `among` has as keys.

    `texts` ask for them, one a name, which may stand several times; without, they are asked for by their names. A
    drawing failed when the first gallery does not find it in the last list. `distance` adds the Fréchet distance of the
    drawings' features to those of the truth.

    Raises:
        ValueError: a gallery lacks a name, or the numbers of names and texts differ.
    """
    truth, prompts = rendered(names), [name_prompt(name) for name in names]
    if texts is not None:
        prompts = [replace(prompt, text=text) for prompt, text in zip(prompts, texts, strict=True)]
    real = [truth[name] for name in names]
    drawn = draw(pipe, prompts, seed)
    again = pipe.reconstruct(real)
    scores, failures = [], list[Failure]()
    for gallery in galleries:
        for title, concepts in among.items():
            found, best = (gallery.retrieve(images, names, concepts) for images in (drawn, again))
            scores.append(Score(f"{HOW[gallery.by]}{title}", found.share, len(names), found.chance, best.share))
            if gallery is galleries[0]:
                whys = [f"looks like {name}" for name in found.found]
                failures = _failed([prompt.text for prompt in prompts], real, drawn, whys, found.right)
    if distance:
        scores.append(distance_score(real, drawn, again))
    return Judged(scores, failures)


def score_held_out(pipe: Pipeline, prompts: Sequence[Prompt], reader: SceneReader) -> list[Score]:
    """Draw scenes and read them back: all of them, then by kind.

    Chance is what the same drawings reach against the prompts of other scenes of their kind.
    """
    return judge_held_out(pipe, prompts, reader).scores


def judge_held_out(
    pipe: Pipeline, prompts: Sequence[Prompt], reader: SceneReader, *, seed: int = 0, distance: bool = False
) -> Judged:
    """Draw scenes and read them back: all of them, the mean of the kinds as GenEval has it, then by kind.

    `distance` adds the Fréchet distance of the drawings' features to those of the truth.
    """
    ordered = by_kind(prompts)
    scenes = [prompt.scene for prompt in ordered]
    real, drawn = [render(scene) for scene in scenes], draw(pipe, ordered, seed)
    again = pipe.reconstruct(real)
    found, luck, best = (
        score_scenes(images, wanted, reader)
        for images, wanted in ((drawn, scenes), (drawn, _others(scenes)), (again, scenes))
    )
    scores = [
        Score("every kind: all of it right", found.share, len(ordered), luck.share, best.share),
        Score("mean of the kinds", found.mean, len(ordered), luck.mean, best.mean),
    ]
    for kind, share in found.shares.items():
        count = found.kinds.count(kind)
        scores.append(Score(kind, share, count, luck.shares[kind] if count > 1 else None, best.shares[kind]))
    if distance:
        scores.append(distance_score(real, drawn, again))
    right = [verdict.right for verdict in found.verdicts]
    whys = [f"wrong: {', '.join(verdict.wrong)}" for verdict in found.verdicts]
    return Judged(scores, _failed([prompt.text for prompt in ordered], real, drawn, whys, right))


def validate_checker(pipe: Pipeline, prompts: Sequence[Prompt], reader: SceneReader) -> list[Score]:
    """Score what needs no model's drawing, to show what the reader of scenes is worth.

    It should find nearly everything in the truth, rendered and passed through the image tokenizer, and nearly nothing
    where the truth is compared with the prompt of another scene of its kind.
    """
    scenes = [prompt.scene for prompt in by_kind(prompts)]
    real = [render(scene) for scene in scenes]
    rows = {
        f"rendered truth (at least {LEAST_TRUTH} %)": (real, scenes),
        f"truth through the tokenizer (at least {LEAST_PASSED} %)": (pipe.reconstruct(real), scenes),
        f"truth, prompts shuffled (at most {MOST_SHUFFLED} %)": (real, _others(scenes)),
    }
    return [Score(name, score_scenes(*pair, reader).share, len(scenes)) for name, pair in rows.items()]


def score_asked(pipe: Pipeline, asked: Sequence[Asked]) -> list[Score]:
    """Answer questions and score them by type."""
    types = score_answers(asked, ask(pipe, asked))
    return [Score(f"{each.type} questions", each.share, each.num_questions, each.chance) for each in types]


def judge_answers(pipe: Pipeline, asked: Sequence[Asked]) -> list[Score]:
    """Answer questions and score all of them, then by type, beside the same model blind.

    Blind is the best of three: the question alone, and with a grey or a white picture; they stand at the end.
    """
    types = score_answers(asked, ask(pipe, asked))
    blind = {how: score_answers(asked, answers) for how, answers in ask_blind(pipe, asked).items()}
    best = max(blind, key=lambda how: _all_types(blind[how]).share)
    rows = [(_all_types(types), _all_types(blind[best])), *zip(types, blind[best], strict=True)]
    scores = [
        Score(f"{each.type} questions", each.share, each.num_questions, each.chance, blind=other.share)
        for each, other in rows
    ]
    whole = _all_types(types)
    return scores + [
        Score(f"blind: {how}{' (the best)' * (how == best)}", _all_types(found).share, len(asked), whole.chance)
        for how, found in blind.items()
    ]


def distance_score(real: Sequence[Image.Image], drawn: Sequence[Image.Image], again: Sequence[Image.Image]) -> Score:
    """Return the Fréchet distance of drawings to their truth; the ceiling is what the image tokenizer leaves of it."""
    truth, found, best = (features(stacked(images)) for images in (real, drawn, again))
    values = (frechet_distance(truth, found), frechet_distance(truth, best))
    return Score("feature Fréchet distance", values[0], len(real), ceiling=values[1], unit="")


def by_kind(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Put prompts in the order of their kinds."""
    return sorted(prompts, key=lambda prompt: prompt.scene.kind)


def _all_types(types: Sequence[TypeScore]) -> TypeScore:
    """Put types together; chance always gives the commonest answer of the question's type."""
    count = sum(each.num_questions for each in types)
    chance = sum(each.chance * each.num_questions for each in types) / max(1, count)
    return TypeScore("all", count, sum(each.num_right for each in types), chance)


def _failed(
    prompts: Sequence[str], real: Sequence[Image.Image], drawn: Sequence[Image.Image], whys: Sequence[str],
    right: Sequence[bool],
) -> list[Failure]:  # fmt: skip
    everything = map(Failure, prompts, real, drawn, whys)
    return [failure for failure, good in zip(everything, right, strict=True) if not good]


def _others(scenes: Sequence[Scene]) -> list[Scene]:
    """Move every scene's prompt to the next one of its kind, or where it is the only one, to the next of all.

    The scenes stand kind by kind.
    """
    moved: list[Scene] = []
    for kind in dict.fromkeys(scene.kind for scene in scenes):
        same = [scene for scene in scenes if scene.kind == kind]
        after = (scenes.index(same[0]) + 1) % len(scenes)
        moved += [*same[1:], same[0]] if len(same) > 1 else [scenes[after]]
    return moved
