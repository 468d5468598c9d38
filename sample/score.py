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
    allow_pickle: bool = False,
) -> None:
    """Score drawings and answers.

    Args:
        model: model folder, or the name of an embedded model.
        concepts: how many of the scene concepts the model has learned.
        count: held-out scenes; twice as many questions are asked about them.
        seed: of the held-out scenes and of the drawings.
        out: JSON file of the scores and of what they were made with.
        device: cpu, cuda, ... or auto.
        dtype: float32, bfloat16 or int8 (of the weights, on a CPU), float64, stored or auto.
        allow_pickle: also read weights that are stored as pickles; only for folders whose makers you trust.
    """
    import json
    import sys
    from dataclasses import asdict

    import anymodal
    from anymodal.data.emoji import scene_names
    from anymodal.data.scenes import scene_samples
    from anymodal.scoring import judging
    from anymodal.scoring.answers import questions_of
    from anymodal.scoring.features import is_installed
    from anymodal.scoring.scenes import SceneReader

    pipe = anymodal.from_pretrained(model, device=device, dtype=dtype, allow_pickle=allow_pickle)
    names = scene_names()[:concepts]
    samples = list(scene_samples("held-out", count=count, seed=seed, concepts=names))
    asked = questions_of(samples)
    every = max(1, len(asked) // (2 * count))
    by = ["pixels", *(["features"] if is_installed() else [])]
    prompts = [judging.scene_prompt(sample) for sample in samples]
    scores = {
        "names, memorised": judging.score_names(pipe, names, names, by=by),
        "scenes with held-out combinations": judging.score_held_out(pipe, prompts, SceneReader(names)),
        "questions about held-out scenes": judging.score_asked(pipe, asked[::every]),
    }
    if len(by) == 1:
        sys.stderr.write("no scores by features: they need `pip install anymodal[test]`\n")
    for title, found in scores.items():
        print(title)
        for each in found:
            print(f"  {each.describe()}")
    if out is not None:
        made_with = {"model": model, "concepts": concepts, "count": count, "seed": seed}
        made_with |= {"version": anymodal.__version__, "image_tokenizer": pipe.image_tokenizer.fingerprint}
        listed = {title: [asdict(each) for each in found] for title, found in scores.items()}
        out.write_text(json.dumps({"made_with": made_with, "scores": listed}, indent=2) + "\n", encoding="utf-8")
