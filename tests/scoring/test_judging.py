from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from anymodal.data.canvas import render
from anymodal.data.scenes import SCENE_NAMES, scene_samples
from anymodal.data.shards import Sample
from anymodal.pipeline import Pipeline
from anymodal.scoring.answers import Asked, questions_of
from anymodal.scoring.judging import (
    Prompt,
    judge_answers,
    judge_held_out,
    judge_names,
    name_prompt,
    scene_prompt,
    score_asked,
    score_held_out,
    score_names,
    show_answers,
    show_drawings,
    validate_checker,
)
from anymodal.scoring.retrieval import Gallery, rendered
from anymodal.scoring.scenes import SceneReader

NAMES = SCENE_NAMES[:12]
SAMPLES = list(scene_samples("held-out", count=14, seed=0, concepts=12))
PROMPTS = [scene_prompt(sample) for sample in SAMPLES]


class Oracle(Pipeline):
    """Draw and answer from the truth; its image tokenizer shows everything as white."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.truth = {prompt.text: render(prompt.scene) for prompt in prompts}
        self.seeds = dict[str, int]()
        self.answers = {(e.image.tobytes(), e.question): e.answer for e in questions_of(SAMPLES)}

    def generate_image(self, prompt: Any, *, seed: Any = 0, **_: Any) -> list[Image.Image]:
        self.seeds |= dict(zip(prompt, seed, strict=True))
        return [self.truth[text] for text in prompt]

    def reconstruct(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        return [Image.new("RGB", image.size, "white") for image in images]

    def answer(self, image: Any, question: Any, **_: Any) -> list[str]:
        return [self.answers.get((each.tobytes(), text), "no") for each, text in zip(image, question, strict=True)]

    def generate_batch(self, documents: Any, **_: Any) -> list[list[str | Image.Image]]:
        return [["never"] for _ in documents]


def test_an_oracle_scores_all_and_stands_beside_chance_and_ceiling() -> None:
    names = [name_prompt(name) for name in NAMES]
    pixels, features = score_names(Oracle(names), NAMES[:6], NAMES, by=("pixels", "features"))
    assert (pixels.value, pixels.count, pixels.chance) == (1.0, 6, 1 / 12)
    assert features.value == 1.0
    assert pixels.ceiling is not None
    assert pixels.ceiling < 0.5
    overall, mean, *kinds = score_held_out(Oracle(PROMPTS), PROMPTS, SceneReader(NAMES))
    assert (overall.value, overall.count, overall.ceiling) == (mean.value, mean.count, mean.ceiling) == (1.0, 14, 0.0)
    assert sum(score.count for score in kinds) == 14
    assert all((score.chance is None) == (score.count == 1) for score in kinds)
    assert all(score.value == 1.0 for score in score_asked(Oracle(PROMPTS), questions_of(SAMPLES)))


def test_shown_pictures_say_what_was_memorised() -> None:
    prompts = [name_prompt("dog"), PROMPTS[0]]
    first, second = show_drawings(Oracle(prompts), prompts, SceneReader(NAMES), memorised=["a dog"])
    assert (first.memorised, first.right, second.memorised, second.right) == (True, True, False, True)
    assert first.real.tobytes() == first.drawn.tobytes() != first.reconstructed.tobytes()
    assert all(each.right for each in show_answers(Oracle(prompts), questions_of(SAMPLES)[:5]))


def test_failures_stand_beside_their_truth() -> None:
    pipe = Oracle(PROMPTS)
    wrong = next(prompt for prompt in PROMPTS if prompt.scene.kind == "two")
    pipe.truth[wrong.text] = render(name_prompt("dog").scene)
    judged = judge_held_out(pipe, PROMPTS, SceneReader(NAMES), distance=True)
    (failure,) = judged.failures
    assert (failure.prompt, failure.truth.tobytes()) == (wrong.text, render(wrong.scene).tobytes())
    assert failure.why.startswith("wrong: concepts, count, tiles")
    shares = {score.name: score for score in judged.scores}
    two = shares["two"]
    assert two.value == 1 - 1 / two.count
    assert shares["mean of the kinds"].value == pytest.approx(1 - 1 / two.count / (len(judged.scores) - 3))
    distance = judged.scores[-1]
    assert (distance.unit, distance.count) == ("", 14)
    assert distance.ceiling is not None
    assert 0 < distance.value < distance.ceiling


def test_names_are_looked_for_in_several_lists() -> None:
    pipe = Oracle([name_prompt(name) for name in NAMES])
    pipe.truth["a dog"] = pipe.truth[name_prompt("cat").text]
    judged = judge_names(
        pipe, ["dog", "rose"], {" of two": ["dog", "rose"], " of all": NAMES}, [Gallery(rendered(NAMES))]
    )
    assert [(score.name, score.chance) for score in judged.scores] == [
        ("nearest concept by pixels of two", 1 / 2), ("nearest concept by pixels of all", 1 / 12),
    ]  # fmt: skip
    assert judged.scores[1].value == 0.5
    assert [(each.prompt, each.why) for each in judged.failures] == [("a dog", "looks like cat")]


def test_names_may_be_asked_for_in_other_words() -> None:
    pipe = Oracle([])
    pipe.truth = {text: rendered(NAMES)["dog"] for text in ("hound", "puppy", "a cat")}
    judged = judge_names(
        pipe, ["dog", "dog", "cat"], {"": NAMES}, [Gallery(rendered(NAMES))], texts=["hound", "puppy", "a cat"], seed=7
    )
    assert judged.scores[0].value == pytest.approx(2 / 3)
    assert [each.prompt for each in judged.failures] == ["a cat"]
    assert pipe.seeds == {"hound": 7, "puppy": 8, "a cat": 9}
    with pytest.raises(ValueError, match="zip"):
        judge_names(pipe, ["dog"], {"": NAMES}, [Gallery(rendered(NAMES))], texts=[])


def test_every_drawing_has_its_own_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anymodal.scoring.judging.BATCH", 4)
    pipe = Oracle(PROMPTS)
    judge_held_out(pipe, PROMPTS, SceneReader(NAMES), seed=1000)
    assert sorted(pipe.seeds.values()) == list(range(1000, 1000 + len(PROMPTS)))


def test_the_only_scene_of_a_kind_is_shuffled_with_another_kind() -> None:
    one, two = (next(prompt for prompt in PROMPTS if prompt.scene.kind == kind) for kind in ("one", "two"))
    *_, shuffled = validate_checker(Oracle(PROMPTS), [one, two], SceneReader(NAMES))
    assert shuffled.value == 0.0


def test_the_checker_is_validated_without_drawings() -> None:
    truth, passed, shuffled = validate_checker(Oracle(PROMPTS), PROMPTS, SceneReader(NAMES))
    assert (truth.value, truth.count, passed.value) == (1.0, 14, 0.0)
    assert shuffled.value < 0.2


def test_the_blind_model_is_the_best_of_three() -> None:
    asked = questions_of(SAMPLES)
    scores = {score.name: score for score in judge_answers(Oracle(PROMPTS), asked)}
    share = sum(each.answer == "no" for each in asked) / len(asked)
    assert (scores["all questions"].value, scores["all questions"].blind) == (1.0, share)
    assert scores["yes-no questions"].blind == 0.5
    assert scores["count questions"].blind == 0.0
    assert scores["blind: no picture"].value == 0.0
    assert scores["blind: a grey picture (the best)"].value == scores["blind: a white picture"].value == share
    commonest = {kind: max(found.count(answer) for answer in found) for kind, found in by_type(asked).items()}
    assert scores["all questions"].chance == pytest.approx(sum(commonest.values()) / len(asked))


def by_type(asked: Sequence[Asked]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in asked:
        found.setdefault(each.type, []).append(each.answer.removeprefix("an ").removeprefix("a "))
    return found


def test_samples_without_truth_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="ground truth to be scored, 'mine'"):
        scene_prompt(Sample("mine", {"txt": b"a dog"}))
