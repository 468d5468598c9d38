"""Let a model draw and answer, and score it: every share next to chance and to the ceiling."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from anymodal.data.canvas import Scene, render
from anymodal.data.english import with_article
from anymodal.data.samples import details_of
from anymodal.data.shards import Sample
from anymodal.pipeline import Pipeline
from anymodal.scoring.answers import Asked, ask, is_right, score_answers
from anymodal.scoring.report import Answered, Drawing, Score
from anymodal.scoring.retrieval import rendered, retrieve
from anymodal.scoring.scenes import SceneReader, compare, score_scenes

BATCH = 32
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


def draw(pipe: Pipeline, prompts: Sequence[Prompt], seed: int = 0) -> list[Image.Image]:
    """Draw one picture a prompt, some at a time."""
    texts = [prompt.text for prompt in prompts]
    parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    return [image for number, part in enumerate(parts) for image in pipe.generate_image(part, seed=seed + number)]


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


def score_names(
    pipe: Pipeline, names: Sequence[str], concepts: Sequence[str], *, by: Sequence[str] = ("pixels",)
) -> list[Score]:
    """Draw names and look for the nearest among `concepts`, by pixels or features."""
    truth = rendered(concepts)
    drawn = draw(pipe, [name_prompt(name) for name in names])
    again = pipe.reconstruct([truth[name] for name in names])
    scores = []
    for how in by:
        found, best = (retrieve(images, names, truth, by=how) for images in (drawn, again))
        scores.append(Score(HOW[how], found.share, len(names), found.chance, best.share))
    return scores


def score_held_out(pipe: Pipeline, prompts: Sequence[Prompt], reader: SceneReader) -> list[Score]:
    """Draw scenes and read them back: all of them, then by kind.

    Chance is what the same drawings reach against the prompts of other scenes of their kind.
    """
    ordered = sorted(prompts, key=lambda prompt: prompt.scene.kind)
    scenes = [prompt.scene for prompt in ordered]
    drawn = draw(pipe, ordered)
    again = pipe.reconstruct([render(scene) for scene in scenes])
    found, luck, best = (
        score_scenes(images, wanted, reader)
        for images, wanted in ((drawn, scenes), (drawn, _others(scenes)), (again, scenes))
    )
    overall = Score("every kind: all of it right", found.share, len(ordered), luck.share, best.share)
    shares = []
    for kind, share in found.shares.items():
        count = found.kinds.count(kind)
        shares.append(Score(kind, share, count, luck.shares[kind] if count > 1 else None, best.shares[kind]))
    return [overall, *shares]


def score_asked(pipe: Pipeline, asked: Sequence[Asked]) -> list[Score]:
    """Answer questions and score them by type."""
    types = score_answers(asked, ask(pipe, asked))
    return [Score(f"{each.type} questions", each.share, each.num_questions, each.chance) for each in types]


def _others(scenes: Sequence[Scene]) -> list[Scene]:
    """Move every scene's prompt to the next one of its kind; the scenes stand kind by kind."""
    moved: list[Scene] = []
    for kind in dict.fromkeys(scene.kind for scene in scenes):
        same = [scene for scene in scenes if scene.kind == kind]
        moved += [*same[1:], same[0]]
    return moved
