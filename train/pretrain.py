r"""Train a unified model from nothing on shards with codes.

    anymodal train pretrain --config configs/emoji/pretrain.yaml
    anymodal train pretrain --data.train "data/coded/{000000..000003}.tar" --text_tokenizer data/tokenizer.json \
        --image_tokenizer runs/tokenizer/image_tokenizer --out runs/mine

Drawing, answering and text documents are mixed in every step. The best model (by its loss on --data.held_out, where
given) is in OUT/model, for `anymodal sample` and `anymodal.from_pretrained`; checkpoints, logs, drawn pictures and
answers stand beside it. Ctrl-C saves; the same command resumes.
"""

from pathlib import Path

from anymodal.data.config import DataConfig
from anymodal.decoding.config import GenerationConfig
from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig
from anymodal.model.config import AnyModalConfig
from anymodal.tokens.config import ChatTemplate


def main(
    *,
    out: Path,
    data: DataConfig,
    text_tokenizer: Path,
    image_tokenizer: Path,
    model: AnyModalConfig = AnyModalConfig(),
    template: ChatTemplate = ChatTemplate(),
    stage: StageConfig = StageConfig(),
    optimizer: OptimizerConfig = OptimizerConfig(),
    run: RunConfig = RunConfig(),
    generation: GenerationConfig = GenerationConfig(),
    prompts: list[str] = [],  # noqa: B006 (never changed)
    dry_run: bool = False,
) -> int:
    """Train a unified model.

    Args:
        out: folder of the run.
        data: shards with codes.
        text_tokenizer: tokenizer.json that `anymodal tokenizers text` wrote.
        image_tokenizer: folder that `anymodal tokenizers image` wrote.
        model: shape of the model.
        template: what stands around turns.
        stage: what is learned, in which mixture.
        optimizer: how it learns.
        run: how long it trains and what it writes on its way.
        generation: sampling defaults that the model folder will carry.
        prompts: what is drawn every run.sample_every steps, beside answers about held-out pictures.
        dry_run: say what the run would do (parts, memory, epochs, padding), write OUT/first_batch.png, train nothing.
    """
    import torch

    from anymodal.configuration import to_dict
    from anymodal.learning.distributed import is_first
    from anymodal.learning.planning import dry_run as plan
    from anymodal.learning.unified_run import new_model, train_unified
    from anymodal.pipeline import Pipeline
    from anymodal.scoring.showing import first_questions, snapshots

    torch.manual_seed(run.seed)
    parts = new_model(model, data, text_tokenizer=text_tokenizer, image_tokenizer=image_tokenizer, template=template)
    parts.generation = to_dict(generation)
    if dry_run:
        print(plan(parts, data=data, stage=stage, optimizer=optimizer, run=run, out=out))
        return 0
    show = snapshots(Pipeline(parts), prompts, first_questions(data), out / "samples") if run.sample_every else None
    code = train_unified(parts, data=data, stage=stage, optimizer=optimizer, run=run, out=out, show=show)
    if is_first():
        print(f"{out / 'model'}: {run.steps} steps" if code == 0 else f"{out}: stopped; the same command resumes")
    return code
