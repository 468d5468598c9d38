"""Score a model on the embedded emoji: names, scenes with held-out combinations, and questions about them.

    anymodal sample score --model emoji --concepts 100
    anymodal sample score --model runs/mine/model --count 48 --out scores.json

Every share stands next to chance and, for drawings, to the ceiling: the truth passed through the image tokenizer. Same
seed, same figures.
"""

from pathlib import Path


def main(
    *,
    model: str = "emoji",
    concepts: int = 100,
    count: int = 240,
    seed: int = 1000,
    out: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> None:
    """Score drawings and answers.

    Args:
        model: model folder, or the name of an embedded model.
        concepts: how many of the scene concepts the model has learned, in their order.
        count: held-out scenes; twice as many questions are asked about them.
        seed: of the held-out scenes and of the drawings.
        out: JSON file of the scores and of what they were made with.
        device: cpu, cuda, ... or auto.
        dtype: float32, bfloat16, float64 or auto.
    """
    import dataclasses
    import json
    import sys

    import anymodal
    from anymodal.data.emoji import scene_names
    from anymodal.data.scenes import scene_samples
    from anymodal.scoring import judging
    from anymodal.scoring.answers import questions_of
    from anymodal.scoring.features import is_installed
    from anymodal.scoring.scenes import SceneReader

    pipe = anymodal.from_pretrained(model, device=device, dtype=dtype)
    names = scene_names()[:concepts]
    samples = list(scene_samples("held-out", count=count, seed=seed, concepts=names))
    asked = questions_of(samples)
    every = max(1, len(asked) // (2 * count))
    by = ["pixels", *(["features"] if is_installed() else [])]
    scores = {
        "names, memorised": judging.score_names(pipe, names, names, by=by),
        "scenes with held-out combinations": judging.score_held_out(
            pipe, [judging.scene_prompt(sample) for sample in samples], SceneReader(names)
        ),
        "questions about held-out scenes": judging.score_asked(pipe, asked[::every]),
    }
    if len(by) == 1:
        sys.stderr.write("no scores by features: `pip install anymodal[test]` brings the network that they need\n")
    for title, found in scores.items():
        print(title)
        for each in found:
            print(f"  {each.describe()}")
    if out is not None:
        made_with = {
            "model": model,
            "concepts": concepts,
            "count": count,
            "seed": seed,
            "version": anymodal.__version__,
        }
        made_with["image_tokenizer"] = pipe.image_tokenizer.fingerprint
        listed = {title: [dataclasses.asdict(each) for each in found] for title, found in scores.items()}
        out.write_text(json.dumps({"made_with": made_with, "scores": listed}, indent=2) + "\n", encoding="utf-8")
