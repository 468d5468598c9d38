"""Count what every shipped training stage costs: operations by its configuration, hours by what a machine computes.

    python benchmarks/costs.py --readme

Nothing is trained. Operations of a step are those of arXiv:2204.02311, appendix B (`anymodal.learning.flops`), over
documents in the stage's ratios, as long as `Model` says; hours divide them by a machine's rate and the share of it that
training reaches, both of which the table names. Those of image tokenizers are counted in `picture_costs.py`.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import picture_costs
import torch
import yaml
from figures import splice

from anymodal.configuration import from_dict
from anymodal.learning.config import RunConfig, StageConfig
from anymodal.learning.flops import NOMINAL_FLOPS, StepFlops, measured_flops
from anymodal.learning.stages import only_training
from anymodal.model.config import AnyModalConfig, TransformerConfig, UnderstandingConfig
from anymodal.model.unified import AnyModal
from anymodal.scoring.machine import facts
from anymodal.tokens.vocabulary import Vocabulary

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "training.md"
OF_PICTURES = "Image tokenizers, and the codes of pictures, which are made once; those without steps come trained."
CPU_SHARE, GPU_SHARE, CLUSTER = 0.5, 0.4, 64


@dataclass(frozen=True)
class Model:
    """A model that recipes train, and how long its documents are in tokens."""

    config: AnyModalConfig
    text_size: int
    codebook_size: int
    picture: int
    caption: int = 32
    writing: int = 512  # of a document of the task "text"


def _llama(dim: int, depth: int, heads: int, kv_heads: int, hidden: int) -> TransformerConfig:
    return TransformerConfig(
        dim=dim, depth=depth, num_heads=heads, num_kv_heads=kv_heads, head_dim=dim // heads, hidden_dim=hidden
    )


def _janus(transformer: TransformerConfig, image_head_dim: int) -> Model:
    siglip = UnderstandingConfig(image_size=384, patch_size=16, dim=1024, depth=24, num_heads=16, hidden_dim=4096)
    config = AnyModalConfig(
        transformer=transformer, understanding=siglip, heads="decoupled", image_head_dim=image_head_dim
    )
    return Model(config, text_size=102_400, codebook_size=16_384, picture=576)


PUBLISHED = {
    "janus-pro-1b": _janus(_llama(2048, 24, 16, 16, 5632), 2048),
    "janus-pro-7b": _janus(_llama(4096, 30, 32, 32, 11008), 4096),
    "chameleon-7b": Model(AnyModalConfig(transformer=_llama(4096, 32, 32, 32, 11008)), 57_344, 8192, 1024),
    "emu3-8b": Model(AnyModalConfig(transformer=_llama(4096, 32, 32, 8, 14336)), 151_854, 32_768, 8190),
}
OWN = {"emoji": (2048, 4096, 64), "demo": (2048, 1024, 64), "llamagen-xl": (32_000, 16_384, 256)}
"""Text ids, codes and codes a picture of the models whose shape stands in their recipe."""


def model_of(folder: Path) -> Model:
    """Return the model of the recipes of a folder.

    Raises:
        ValueError: it is none of the known.
    """
    if folder.name in PUBLISHED:
        return PUBLISHED[folder.name]
    if folder.name not in OWN:
        raise ValueError(f"costs are counted for {', '.join([*PUBLISHED, *OWN])}, got {folder.name}; add its lengths.")
    shape = yaml.safe_load((folder / "pretrain.yaml").read_text(encoding="utf-8"))["model"]
    text_size, codebook_size, picture = OWN[folder.name]
    caption = 120 if folder.name == "llamagen-xl" else 12
    return Model(from_dict(AnyModalConfig, shape, "model"), text_size, codebook_size, picture, caption, caption)


def reads_codes(path: Path) -> bool:
    """Tell whether a recipe drops the understanding encoder, or goes on from one that does."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    if recipe.get("read_codes"):
        return True
    recipes = {each: yaml.safe_load(each.read_text(encoding="utf-8")) for each in path.parent.glob("*.yaml")}
    others = {f"{other['out']}/model": each for each, other in recipes.items()}
    before = others.get(str(recipe.get("model")))
    return before is not None and reads_codes(before)


def document(task: str, model: Model) -> tuple[int, int, int, int]:
    """Return tokens, text targets, image targets and looked-at pictures of a document of a task."""
    looked = model.config.understanding.num_tokens if model.config.understanding else model.picture
    if task == "text":
        return model.writing, model.writing, 0, 0
    if task == "draw":
        return model.caption + model.picture, 1, model.picture, 0
    asked = {"answer": 2, "describe": 1, "chat": 2}[task] * model.caption
    return looked + asked, model.caption, 0, int(model.config.understanding is not None)


def step(model: Model, stage: StageConfig, run: RunConfig) -> tuple[float, float]:
    """Return the tokens and the operations of a step."""
    vocabulary = Vocabulary.build(text_size=model.text_size, specials={"boi": 0}, codebook_size=model.codebook_size)
    with torch.device("meta"):
        built = AnyModal(model.config, vocabulary)
    with only_training(built, stage):
        costs = StepFlops.of(built)
    shares = {task: share for task, share in vars(stage.ratios).items() if share}
    tokens = flops = 0.0
    for task, share in shares.items():
        length, text, image, pictures = document(task, model)
        work = length * costs.token + length**2 * costs.pair + text * costs.text_target + image * costs.image_target
        count = run.batch_size * share / sum(shares.values())
        tokens += count * length
        flops += count * (work + pictures * costs.picture)
    return tokens, flops


def rows(recipes: Sequence[Path], cpu: float) -> Iterator[str]:
    """Yield a line of the table for every recipe."""
    gpu = NOMINAL_FLOPS["H200"]
    for path in recipes:
        data: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        stage, run = from_dict(StageConfig, data["stage"], "stage"), from_dict(RunConfig, data["run"], "run")
        model = model_of(path.parent)
        if reads_codes(path):
            model = replace(model, config=replace(model.config, understanding=None))
        tokens, flops = step(model, stage, run)
        whole = flops * run.steps
        times = [whole / (cpu * CPU_SHARE), whole / (gpu * GPU_SHARE), whole / (gpu * GPU_SHARE * CLUSTER)]
        yield (
            f"| `{path.parent.name}/{path.stem}` | {run.steps:,} | {tokens:,.0f} | {flops / 1e12:,.3g} | "
            f"{whole / 1e18:,.3g} | {' | '.join(span(each) for each in times)} |"
        )


def span(seconds: float) -> str:
    """Say a time in the unit that suits it."""
    for name, unit in (("years", 365 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= unit * (2 if name in ("days", "years") else 1):
            return f"{seconds / unit:,.2g} {name}" if seconds < 100 * unit else f"{seconds / unit:,.0f} {name}"
    return f"{seconds:.2g} s"


def table(recipes: Sequence[Path], pictures: Sequence[Path]) -> str:
    """Return the tables of models and of image tokenizers."""
    cpu = measured_flops(torch.device("cpu"), torch.float32)
    head = (
        f"| stage | steps | tokens a step | TFLOP a step | EFLOP in all | this CPU | one H200 | {CLUSTER} H200 |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    return "\n".join([
        f"Counted, not measured. {facts()['Processor']}: {cpu / 1e9:.0f} GFLOP/s of float32 products, of which "
        f"{CPU_SHARE:.0%}; H200: {NOMINAL_FLOPS['H200'] / 1e12:.0f} TFLOP/s in bfloat16, as its maker states, of which "
        f"{GPU_SHARE:.0%}.", "", head, *rows(recipes, cpu), "", OF_PICTURES, "",
        picture_costs.table(pictures, cpu * CPU_SHARE, NOMINAL_FLOPS["H200"] * GPU_SHARE, span),
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Count, print, and splice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, nargs="?", const=PAGE, help="splice the table into it")
    options = parser.parse_args(argv)
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("configs/*/*.yaml"))}
    recipes, pictures = ([path for path, text in texts.items() if key in text] for key in ("\nstage:", "\nlosses:"))
    found = table(recipes, pictures)
    print(found)
    if options.readme is not None:
        splice(options.readme, found, "costs")


if __name__ == "__main__":
    main()
