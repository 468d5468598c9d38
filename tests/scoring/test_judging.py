from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from anymodal.data.canvas import render
from anymodal.data.scenes import SCENE_NAMES, scene_samples
from anymodal.data.shards import Sample
from anymodal.pipeline import Pipeline
from anymodal.scoring.answers import questions_of
from anymodal.scoring.judging import (
    Prompt,
    name_prompt,
    scene_prompt,
    score_asked,
    score_held_out,
    score_names,
    show_answers,
    show_drawings,
)
from anymodal.scoring.scenes import SceneReader

NAMES = SCENE_NAMES[:12]
SAMPLES = list(scene_samples("held-out", count=14, seed=0, concepts=12))
PROMPTS = [scene_prompt(sample) for sample in SAMPLES]


class Oracle(Pipeline):
    """Draw and answer from the truth; its image tokenizer shows everything as white."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.truth = {prompt.text: render(prompt.scene) for prompt in prompts}
        self.answers = {(e.image.tobytes(), e.question): e.answer for e in questions_of(SAMPLES)}

    def generate_image(self, prompt: Any, **_: Any) -> list[Image.Image]:
        return [self.truth[text] for text in prompt]

    def reconstruct(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        return [Image.new("RGB", image.size, "white") for image in images]

    def answer(self, image: Any, question: Any, **_: Any) -> list[str]:
        return [self.answers[each.tobytes(), text] for each, text in zip(image, question, strict=True)]


def test_an_oracle_scores_all_and_stands_beside_chance_and_ceiling() -> None:
    names = [name_prompt(name) for name in NAMES]
    pixels, features = score_names(Oracle(names), NAMES[:6], NAMES, by=("pixels", "features"))
    assert (pixels.value, pixels.count, pixels.chance) == (1.0, 6, 1 / 12)
    assert features.value == 1.0
    assert pixels.ceiling is not None
    assert pixels.ceiling < 0.5
    overall, *kinds = score_held_out(Oracle(PROMPTS), PROMPTS, SceneReader(NAMES))
    assert (overall.value, overall.count, overall.ceiling) == (1.0, 14, 0.0)
    assert sum(score.count for score in kinds) == 14
    assert all((score.chance is None) == (score.count == 1) for score in kinds)
    assert all(score.value == 1.0 for score in score_asked(Oracle(PROMPTS), questions_of(SAMPLES)))


def test_shown_pictures_say_what_was_memorised() -> None:
    prompts = [name_prompt("dog"), PROMPTS[0]]
    first, second = show_drawings(Oracle(prompts), prompts, SceneReader(NAMES), memorised=["a dog"])
    assert (first.memorised, first.right, second.memorised, second.right) == (True, True, False, True)
    assert first.real.tobytes() == first.drawn.tobytes() != first.reconstructed.tobytes()
    assert all(each.right for each in show_answers(Oracle(prompts), questions_of(SAMPLES)[:5]))


def test_samples_without_truth_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="ground truth to be scored, 'mine'"):
        scene_prompt(Sample("mine", {"txt": b"a dog"}))
