"""Measure tokens/s of a training step beside transformers' Llama, the loss head beside full logits, and memory.

    python benchmarks/training.py --readme
    python benchmarks/training.py --shapes 170m --precisions bfloat16
    python benchmarks/training.py --quick --out /tmp/training.json

A step is forward, backward, clipping and AdamW, on the same weights and the same rows. Rounds are interleaved, figures
are medians. Results are kept by name in a JSON file; what is not run stays as it was measured.
"""

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from figures import publish, times
from peers import PRECISIONS, SHAPES, Shape
from sampling import HERE, measured_on, race, settings
from torch import Tensor, nn

from anymodal.learning.config import OptimizerConfig, RunConfig
from anymodal.learning.flops import StepFlops
from anymodal.learning.optimizer import build_optimizer, trainable
from anymodal.learning.passing import through_of
from anymodal.model.config import AnyModalConfig
from anymodal.model.loss import token_loss
from anymodal.model.unified import AnyModal
from anymodal.published.llama import backbone_rules, read_transformer
from anymodal.published.names import Names
from anymodal.tokens.batch import Batch
from anymodal.tokens.vocabulary import Vocabulary

ROWS, LENGTH = 4, 288
VOCABULARY, CODES = 20480, 16384
Z_LOSS = 1e-5
KINDS = {"a document a row": False, "packed documents": True}
GEMM, PRODUCTS = "matrix products", 16
RUNS = {
    "": RunConfig(),
    " compiled": RunConfig(compile=True),
    ", activations computed again": RunConfig(checkpoint_activations=True),
}
TRAINED = {
    "toy":  SHAPES["toy"],
    "40m":  Shape(512, 6, 8, 1376, VOCABULARY - CODES, CODES),
    "170m": SHAPES["150m"],
}  # fmt: skip
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
HEADS = {"toy": (64, 32, 512), "20k": (1152, 512, 20480), "65k": (4096, 1024, 65536)}
"""Targets, width and classes of a loss head."""


@dataclass(frozen=True)
class Rows:
    """Rows of ids and what follows each; the documents that share a row, where they do."""

    batch: Batch
    mask: Tensor | None

    @classmethod
    def draw(cls, vocabulary: int, *, packed: bool) -> "Rows":
        """Draw rows of random ids: one document each, or documents of a few dozen tokens behind each other."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, vocabulary, (ROWS, LENGTH + 1), generator=generator)
        positions = torch.arange(LENGTH).expand(ROWS, -1)
        batch = Batch(ids=ids[:, :-1].contiguous(), targets=ids[:, 1:].contiguous(), positions=positions)
        if not packed:
            return cls(batch, None)
        begins = torch.rand(ROWS, LENGTH, generator=generator) < 1 / 48
        begins[:, 0] = True
        batch.documents = begins.flatten().cumsum(0).view(ROWS, LENGTH) - 1
        batch.positions = positions - torch.where(begins, positions, 0).cummax(1).values
        same = batch.documents[:, None, :, None] == batch.documents[:, None, None, :]
        return cls(batch, same & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())


def llama(shape: Shape, vocabulary: int) -> nn.Module:
    """Build transformers' model."""
    import transformers  # noqa: PLC0415

    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=shape.dim, intermediate_size=shape.hidden_dim, rms_norm_eps=1e-6,
        num_hidden_layers=shape.depth, num_attention_heads=shape.num_heads, num_key_value_heads=shape.num_heads,
        max_position_embeddings=1024, tie_word_embeddings=False,
    )).train()  # fmt: skip


def unified(theirs: Any, codes: int) -> AnyModal:
    """Build ours with the weights of theirs: one head over text and codes."""
    size = theirs.config.vocab_size
    vocabulary = Vocabulary.build(text_size=size - codes, specials={"pad": 0}, codebook_size=codes)
    model = AnyModal(AnyModalConfig(transformer=read_transformer(theirs.config.to_dict())), vocabulary)
    weights = {name: weight.clone() for name, weight in theirs.state_dict().items()}
    Names(backbone_rules("model.", tied=False)).read(weights, model, "Llama")
    return model.train()


class Trainings:
    """Everyone who takes a step: two models of the same weights, each as it is and compiled."""

    def __init__(self, shape: Shape, vocabulary: int, codes: int, precision: str) -> None:
        """Build the models and their optimizers."""
        self.theirs = llama(shape, vocabulary)
        self.ours = unified(self.theirs, codes)
        self.compiled = torch.compile(self.theirs)
        dtype = PRECISIONS[precision]
        self.autocast = nullcontext if dtype == torch.float32 else partial(torch.autocast, "cpu", dtype)
        config = OptimizerConfig()
        self.optimizers = {
            "ours": build_optimizer(trainable(self.ours), config),
            "theirs": torch.optim.AdamW(self.theirs.parameters(), lr=config.learning_rate, fused=True),
        }
        self.through = {name: through_of(run) for name, run in RUNS.items()}

    def runners(self, rows: Rows, *, quick: bool) -> dict[str, Callable[[], Tensor]]:
        """Return what computes the loss of everyone by name."""
        ours = {f"anymodal{name}": partial(self.ours_loss, rows, name) for name in RUNS}
        runners = {
            "transformers": partial(self.their_loss, rows, self.theirs),
            "transformers compiled": partial(self.their_loss, rows, self.compiled),
            **ours,
        }
        return {name: runner for name, runner in runners.items() if not (quick and "compiled" in name)}

    def ours_loss(self, rows: Rows, run: str) -> Tensor:
        """Compute our loss a token."""
        self.ours.transformer.through = self.through[run]
        with self.autocast():
            losses = self.ours(rows.batch).losses
        return torch.stack([part.total for part in losses.values()]).sum() / rows.batch.targets.numel()

    def their_loss(self, rows: Rows, model: Any) -> Tensor:
        """Compute their loss a token; documents of a row are kept apart by a dense mask."""
        batch = rows.batch
        with self.autocast():
            out = model(
                input_ids=batch.ids, attention_mask=rows.mask, position_ids=batch.positions, labels=batch.targets,
                shift_labels=batch.targets, use_cache=False,
            )  # fmt: skip
        return out.loss  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Let go of all gradients."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()

    def step(self, name: str, loss_of: Callable[[], Tensor]) -> None:
        """Take a step."""
        model, optimizer = (
            (self.ours, self.optimizers["ours"]) if "anymodal" in name else (self.theirs, self.optimizers["theirs"])
        )
        optimizer.zero_grad()
        loss_of().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def measure(shape: Shape, precision: str, rounds: int, *, quick: bool) -> dict[str, Any]:
    """Measure the steps of one shape in one precision."""
    vocabulary, codes = (512, 384) if quick else (VOCABULARY, CODES)
    trainings = Trainings(shape, vocabulary, codes, precision)
    found: dict[str, Any] = {"parameters": sum(each.numel() for each in trainings.ours.parameters()), "rows": {}}
    kinds = {kind: Rows.draw(vocabulary, packed=packed) for kind, packed in KINDS.items()}
    with torch.no_grad():  # before the weights move apart
        losses = {kind: {name: float(runner()) for name, runner in trainings.runners(rows, quick=quick).items()}
                  for kind, rows in kinds.items()}  # fmt: skip
    for kind, rows in kinds.items():
        runners = trainings.runners(rows, quick=quick)
        for name, runner in runners.items():  # warms up
            trainings.step(name, runner)
        size = 128 if quick else 1024
        square = torch.ones(size, size, dtype=PRECISIONS[precision])
        runs: dict[str, Callable[[int], Any]] = {
            name: (lambda _, name=name, runner=runner: trainings.step(name, runner))  # type: ignore[misc]
            for name, runner in runners.items()
        }
        seconds = race({**runs, GEMM: lambda _, square=square: products(square)}, rounds, clock())  # type: ignore[misc]
        flops = float(StepFlops.of(trainings.ours).of_batch(rows.batch, trainings.ours.code_of))
        forget = trainings.forget
        memory = {name: peak_bytes(partial(trainings.step, name, run), forget) for name, run in runners.items()}
        found["rows"][kind] = {
            "tokens": rows.batch.num_tokens, "flops": flops, "gemm_flops": PRODUCTS * 2 * size**3 / min(seconds[GEMM]),
            "steps": {name: {"loss": losses[kind][name], "seconds": seconds[name], "peak_bytes": memory[name]}
                      for name in runners},
        }  # fmt: skip
    return found


def products(square: Tensor) -> None:
    """Multiply matrices: what this machine does at best."""
    for _ in range(PRODUCTS):
        square @ square


def clock() -> Callable[[], float]:
    """Return what tells the time: that of this process alone, where it has one thread, so that no neighbour counts."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def heads(size: str, rounds: int) -> dict[str, Any]:
    """Measure loss heads forward and backward, z-loss included where there is one."""
    targets, dim, classes = HEADS[size]
    hidden, head = torch.randn(targets, dim, requires_grad=True), nn.Linear(dim, classes, bias=False)
    wanted = torch.randint(0, classes, (targets,))
    losses: dict[str, Callable[[], Tensor]] = {
        "full logits": lambda: F.cross_entropy(head(hidden), wanted, reduction="sum"),
        "torch linear_cross_entropy": lambda: F.linear_cross_entropy(
            hidden, head.weight, wanted, reduction="sum",
            options=nn.LinearCrossEntropyOptions(batch_chunk_size=512, acc_policy="balanced"),
        ),
        "anymodal, with z-loss": lambda: token_loss(head, hidden, wanted, classes, Z_LOSS).total,
    }  # fmt: skip

    def forget() -> None:
        hidden.grad = head.weight.grad = None

    def step(loss_of: Callable[[], Tensor]) -> None:
        forget()
        loss_of().backward()

    gradients = sum(each.nbytes for each in (hidden, head.weight))
    memory = {name: peak_bytes(partial(step, loss), forget) for name, loss in losses.items()}
    seconds = race({name: (lambda _, loss=loss: step(loss)) for name, loss in losses.items()}, rounds, clock())  # type: ignore[misc]
    return {
        "targets": targets, "dim": dim, "classes": classes, "gradient_bytes": gradients,
        "heads": {name: {"seconds": seconds[name], "peak_bytes": memory[name]} for name in losses},
    }  # fmt: skip


def peak_bytes(run: Callable[[], Any], forget: Callable[[], None]) -> int | None:
    """Return the most memory that a run holds beyond what `forget` leaves; None where the system does not tell."""
    if not (STATUS.is_file() and RESET.is_file()):
        return None
    run()  # what is made once is there
    forget()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc keeps what is freed
        trim(0)
    before = _status("VmRSS")
    RESET.write_text("5", encoding="utf-8")  # sets VmHWM back
    run()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def tables(found: dict[str, Any]) -> str:
    """Write the figures as Markdown."""
    parts = list[str]()
    for name, each in found["steps"].items():
        head = f"**{name}**, {each['parameters'] / 1e6:.0f} M parameters, {ROWS} x {LENGTH} tokens. {_where(each)}"
        parts += [head, "\n".join(_step_lines(each))]
    for each in found["heads"].values():
        head = f"Loss head of {each['targets']} targets, width {each['dim']}, {each['classes']} classes, float32."
        parts += [f"{head} {_where(each)}", "\n".join(_head_lines(each))]
    return "\n\n".join(parts)


def _where(each: dict[str, Any]) -> str:
    return (
        f"{each['machine']['Processor']}, {each['threads']} thread(s); torch {each['torch']}, transformers "
        f"{each['transformers']}; medians of {each['rounds']}; {each['date']}, commit {each['commit']}."
    )


def _step_lines(each: dict[str, Any]) -> list[str]:
    lines = [
        "| rows | step | tokens/s | x transformers | x transformers compiled | of GEMM peak | memory | loss |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind, rows in each["rows"].items():
        for name, step in rows["steps"].items():
            median = statistics.median(step["seconds"])
            beside = [
                f"{times(step['seconds'], rows['steps'][other]['seconds']):.2f}" if other in rows["steps"] else ""
                for other in ("transformers", "transformers compiled")
            ]
            share = rows["flops"] / median / rows["gemm_flops"]
            lines.append(
                f"| {kind} | {name} | {rows['tokens'] / median:,.0f} | {' | '.join(beside)} | {share:.0%} | "
                f"{_megabytes(step['peak_bytes'])} | {step['loss']:.4f} |"
            )
    return lines


def _head_lines(each: dict[str, Any]) -> list[str]:
    full = each["heads"]["full logits"]["seconds"]
    logits = 4 * each["targets"] * each["classes"]
    lines = ["| head | seconds | x full logits | memory beside gradients | of float32 logits |",
             "| --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for name, head in each["heads"].items():
        extra = None if head["peak_bytes"] is None else max(0, head["peak_bytes"] - each["gradient_bytes"])
        share = "" if extra is None else f"{extra / logits:.0%}"
        lines.append(
            f"| {name} | {statistics.median(head['seconds']):.2f} | {times(head['seconds'], full):.2f} | "
            f"{_megabytes(extra)} | {share} |"
        )
    return lines


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.0f} MB"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=list(TRAINED), default=["40m"])
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=["float32"])
    parser.add_argument("--heads", nargs="*", choices=list(HEADS), default=["20k"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "training.json")
    parser.add_argument("--readme", type=Path, nargs="?", const=HERE / "README.md", help="splice the tables into it")
    parser.add_argument("--quick", action="store_true", help="toy shapes, one round, nothing compiled")
    options = parser.parse_args(argv)
    if options.quick:
        options.shapes, options.heads, options.rounds = ["toy"], ["toy"], 1
    found: dict[str, Any] = {"steps": {}, "heads": {}}
    if options.out.is_file():
        found = json.loads(options.out.read_text(encoding="utf-8"))
    with settings(options.threads):
        about = {**measured_on(SHAPES["toy"], 0.0), "rounds": options.rounds}
        for shape in options.shapes:
            for precision in options.precisions:
                print(f"{shape} {precision}", file=sys.stderr)
                measured = measure(TRAINED[shape], precision, options.rounds, quick=options.quick)
                found["steps"][f"{shape} {precision}"] = {**about, **measured}
                options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        for size in options.heads:
            print(f"head {size}", file=sys.stderr)
            found["heads"][size] = {**about, **heads(size, options.rounds)}
    publish(found, tables(found), options.out, options.readme, "training")


if __name__ == "__main__":
    main()
