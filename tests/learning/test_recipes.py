"""The stages that configs/ ships, on tiny models of the same kind: what they train learns, what they freeze stays."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from anymodal.__main__ import main
from anymodal.configuration import from_dict
from anymodal.data.index import ShardIndex
from anymodal.data.samples import Reading, captions_of, details_of, picture_names
from anymodal.data.shards import Sample, write_shards
from anymodal.learning.batches import DocumentBatches
from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
from anymodal.learning.objective import UnifiedObjective
from anymodal.learning.stages import only_training, reached_by
from anymodal.model.config import TransformerConfig
from anymodal.model.folder import ModelFolder
from anymodal.model.parts import parts_of
from anymodal.model.transformer import Segments, Transformer
from anymodal.tokens.batch import Batch

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(
    path for model in ("janus*", "chameleon*", "emu3*", "llamagen*") for path in CONFIGS.glob(f"{model}/*")
)
STEPS = 60  # on one batch, until it is known by heart


def twin(toy: Any, model: str) -> ModelFolder:
    """Make a tiny model of the same kind."""
    if model.startswith("janus"):
        return toy.parts(heads="decoupled")
    kinds: dict[str, dict[str, Any]] = {
        "chameleon-7b": {"num_kv_heads": 2, "qk_norm": "layer"},
        "emu3-8b": {"num_kv_heads": 1},
        "llamagen-xl": {"num_kv_heads": 2},
    }
    transformer = TransformerConfig(
        dim=32, depth=2, num_heads=2, head_dim=16, hidden_dim=64, max_seq_len=512, **kinds[model]
    )
    heads = "decoupled" if model == "llamagen-xl" else "shared"
    return toy.parts(heads=heads, understanding=None, transformer=transformer)


@pytest.fixture(scope="module")
def interleaved(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give every sample of the toy world a conversation that looks and draws."""
    index = ShardIndex.open(toy.coded)

    def talking(sample: Sample) -> Sample:
        picture = picture_names(sample)[0]
        said = [{"text": captions_of(sample)[0]}, {"draw": picture}]
        turns = [
            {"role": "user", "parts": [{"look": picture}, {"text": "Once more!"}]},
            {"role": "assistant", "parts": said},
        ]
        details = json.dumps({**details_of(sample), "turns": turns}).encode()
        return Sample(sample.key, {**sample.members, "json": details})

    folder = tmp_path_factory.mktemp("interleaved")
    write_shards((talking(index.read(i)) for i in range(len(index))), f"{folder}/%06d.tar")
    return str(folder)


def batch_of(shards: str, parts: ModelFolder, stage: StageConfig) -> Batch:
    understanding = parts.model.config.understanding
    reading = Reading(
        fingerprint=parts.image_tokenizer.fingerprint,
        look_size=understanding.image_size if understanding else None,
        prompt_dropout=stage.prompt_dropout,
    )
    order = {"batch_size": 20, "seed": 0, "steps": 1}
    batches = DocumentBatches(
        ShardIndex.open(shards), encoder=parts.encoder(), reading=reading, stage=stage, order=order
    )
    return batches[0]


def learn(objective: UnifiedObjective, batch: Batch) -> list[dict[str, float]]:
    """Return the losses of every step."""
    built: Any = objective.configure_optimizers()
    logged: list[dict[str, float]] = []
    objective.log = lambda name, value, **_: logged[-1].update({name: float(value)})  # type: ignore[method-assign]
    ready = objective.transfer_batch_to_device(batch, objective.device, 0)
    for number in range(STEPS):
        logged.append({})
        objective.training_step(ready, number).backward()
        objective.configure_gradient_clipping(built["optimizer"])
        built["optimizer"].step()
    return logged


def read(path: Path) -> Mapping[str, Any]:
    data: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return data


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_overfits_a_batch_with_its_parts_and_no_other(toy: Any, interleaved: str, path: Path) -> None:
    data = read(path)
    stage, run = from_dict(StageConfig, data["stage"], "stage"), from_dict(RunConfig, data["run"], "run")
    shipped = from_dict(OptimizerConfig, data["optimizer"], "optimizer")
    optimizer = replace(shipped, learning_rate=0.01, warmup_steps=0)  # tiny models are quick
    parts = twin(toy, path.parent.name)
    batch = batch_of(interleaved, parts, stage)
    before = {part: [piece.values.clone() for piece in pieces] for part, pieces in parts_of(parts.model).items()}
    run = replace(run, accumulate=min(run.accumulate, 2), log_every=1)
    objective = UnifiedObjective(parts.model.train(), stage=stage, optimizer=optimizer, run=run)
    with only_training(parts.model, stage):
        losses = learn(objective, batch)
    weights = {"text": stage.text_weight, "image": stage.image_weight}
    for modality in (modality for modality, weight in weights.items() if weight):
        name = f"train_{modality}_loss"
        known = f"{modality}_head" in (stage.trains or before)  # what has no head of its own to train only leans
        most = 0.2 * losses[0][name] if known else losses[0][name] - 0.01
        assert losses[-1][name] < most, f"{name}: {losses[0][name]} to {losses[-1][name]}"
    for part, pieces in parts_of(parts.model).items():
        same = [torch.equal(piece.values, old) for piece, old in zip(pieces, before[part], strict=True)]
        trained = part in (stage.trains or before)
        assert not all(same) if trained else all(same), f"{part} was {'not ' * trained}to stay"
    assert set(stage.trains or before) <= reached_by(parts.model.config, stage)


def test_a_recipe_runs_from_the_command_line(toy: Any, tmp_path: Path) -> None:
    twin(toy, "chameleon-7b").save(tmp_path / "model")
    words = ["train", "finetune", "--config", "configs/chameleon-7b/head.yaml", "--model", str(tmp_path / "model")]
    words += [
        "--data.train",
        toy.coded,
        "--data.held_out",
        "null",
        "--data.num_workers",
        "0",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*words, "--run.steps", "2", "--run.precision", "float32"]) == 0
    before, after = (ModelFolder.load(tmp_path / name).model for name in ("model", "run/model"))
    moved = {name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])}
    assert moved == {"head.weight"}
    rows = (after.head.weight != before.head.weight).any(1)
    assert torch.equal(torch.nonzero(rows).flatten(), after.image_ids)


@pytest.mark.parametrize(("qk_norm", "kv_heads"), [("none", 4), ("none", 1), ("layer", 4)])
def test_activations_are_what_the_recipes_count(qk_norm: Any, kv_heads: int) -> None:
    """Count the bytes that a block keeps for the way back, of one token in bfloat16."""
    length, sizes = 40, []
    for depth in (1, 2):
        config = TransformerConfig(dim=256, depth=depth, num_kv_heads=kv_heads, hidden_dim=704, qk_norm=qk_norm)
        transformer, kept = Transformer(config), dict[int, int]()
        weights = {tuple(size) for each in transformer.parameters() for size in (each.shape, each.shape[::-1])}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept, weights: Any = weights) -> torch.Tensor:
            if tuple(tensor.shape) not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(1, length, config.dim, requires_grad=True)
        segments = Segments.of(torch.zeros(1, length, dtype=torch.long))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu"):
            transformer(x, torch.arange(length)[None], segments)
        sizes.append(sum(kept.values()))
    counted = (16 + 8 * (qk_norm == "layer")) * 256 + 8 * 704 + 4 * kv_heads * config.head_dim
    assert (sizes[1] - sizes[0]) / length == pytest.approx(counted, rel=0.06)


def test_every_published_recipe_is_there() -> None:
    found = {f"{path.parent.name}/{path.stem}" for path in RECIPES}
    stages = {f"janus-pro-1b/stage-{number}" for number in (1, 2, 3)} | {f"chameleon-7b/stage-{n}" for n in (1, 2)}
    tuned = {f"{model}/finetune" for model in ("janus-pro-1b", "janus-pro-7b", "emu3-8b", "chameleon-7b")}
    assert stages | tuned | {"chameleon-7b/head", "emu3-8b/pretrain", "emu3-8b/draw", "llamagen-xl/pretrain"} == found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_says_what_it_rests_on(path: Path) -> None:
    head = "".join(line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line[0] == "#")
    for fact in ("arXiv:", "not measured", "Memory", "GB", "ours"):
        assert fact.lower() in head.lower()
    written = read(path)["stage"]["ratios"]
    assert {"draw", "answer", "text"} <= set(written), "a ratio that is left out would be the default"
