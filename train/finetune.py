"""Go on training a model folder on shards with codes.

    anymodal train finetune --model emoji --data.train "data/coded/{000000..000003}.tar" --out runs/tuned

The shards must carry codes of the model's own image tokenizer: `anymodal tokenizers codes --image_tokenizer MODEL`.
The result is in OUT/model. Ctrl-C saves; the same command resumes.
"""

from pathlib import Path

from anymodal.data.config import DataConfig
from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig


def main(
    *,
    model: str,
    out: Path,
    data: DataConfig,
    stage: StageConfig = StageConfig(),
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, warmup_steps=20),
    run: RunConfig = RunConfig(steps=200),
    prompts: list[str] = [],  # noqa: B006 (never changed)
    read_codes: bool = False,
    dry_run: bool = False,
    allow_pickle: bool = False,
) -> int:
    """Fine-tune a unified model.

    Args:
        model: model folder, or the name of an embedded model.
        out: folder of the run.
        data: shards with codes.
        stage: what is learned, in which mixture.
        optimizer: how it learns.
        run: how long it trains and what it writes on its way.
        prompts: what is drawn every run.sample_every steps, beside answers about held-out pictures.
        read_codes: drop the model's understanding encoder; it learns to look at pictures as the codes that it draws.
        dry_run: say what the run would do (parts, memory, epochs, padding), write OUT/first_batch.png, train nothing.
        allow_pickle: also read weights that are stored as pickles; only for folders whose makers you trust.
    """
    from anymodal.learning.distributed import is_first
    from anymodal.learning.planning import dry_run as plan
    from anymodal.learning.unified_run import train_unified
    from anymodal.pipeline import Pipeline, from_pretrained
    from anymodal.scoring.showing import first_questions, snapshots

    pipe = from_pretrained(model, device="cpu", dtype="float32", native=False, allow_pickle=allow_pickle)
    if read_codes:
        pipe = Pipeline(pipe.parts.reading_codes())
    if dry_run:
        print(plan(pipe.parts, data=data, stage=stage, optimizer=optimizer, run=run, out=out))
        return 0
    show = snapshots(pipe, prompts, first_questions(data), out / "samples") if run.sample_every else None
    code = train_unified(
        pipe.parts, data=data, stage=stage, optimizer=optimizer, run=run, out=out, base=model, show=show
    )
    if is_first():
        print(f"{out / 'model'}: {run.steps} steps" if code == 0 else f"{out}: stopped; the same command resumes")
    return code
