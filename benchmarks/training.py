"""Measure tokens/s of a training step beside transformers' Llama, the loss head beside full logits, and memory.

    python benchmarks/training.py --readme
    python benchmarks/training.py --shapes 170m --precisions bfloat16
    python benchmarks/training.py --device cuda --readme
    python benchmarks/training.py --quick --out /tmp/training.json

A step is forward, backward, clipping and AdamW, on the same weights and the same rows, everyone in a process of its
own. Rounds are interleaved, figures are medians. Results are kept by name in a JSON file; what is not run
stays as it was measured.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import accelerated
import torch
import torch.nn.functional as F
from contestants import CODES, KINDS, LENGTH, ROWS, VOCABULARY, Contestant, Rows, Trainings, clock, peak_bytes, sizes
from figures import publish, times
from peers import PRECISIONS, SHAPES, Shape
from sampling import HERE, measured_on, race, settings
from torch import Tensor, nn

from anymodal.learning.flops import StepFlops
from anymodal.model.loss import token_loss

Z_LOSS = 1e-5
GEMM, PRODUCTS = "matrix products", 16
WARM = 3  # steps before the first that counts
TRAINED = {
    "toy":  SHAPES["toy"],
    "40m":  Shape(512, 6, 8, 1376, VOCABULARY - CODES, CODES),
    "170m": SHAPES["150m"],
}  # fmt: skip
GOALS = ("160m", "1b", "7b")
HEADS = {"toy": (64, 32, 512), "20k": (1152, 512, 20480), "65k": (4096, 1024, 65536)}
"""Targets, width and classes of a loss head."""


def measure(shape: Shape, precision: str, rounds: int, *, quick: bool) -> dict[str, Any]:
    """Measure the steps of one shape in one precision."""
    vocabulary, codes = sizes(quick=quick)
    trainings = Trainings(shape, vocabulary, codes, precision)
    found: dict[str, Any] = {"parameters": sum(each.numel() for each in trainings.ours.parameters()), "rows": {}}
    kinds = {kind: Rows.draw(vocabulary, packed=packed) for kind, packed in KINDS.items()}
    names = list(trainings.runners(kinds["packed documents"], quick=quick))
    contestants = {name: Contestant(name, shape, precision, quick=quick) for name in names}
    losses = {kind: {name: each.ask("loss", kind) for name, each in contestants.items()} for kind in kinds}
    size = 128 if quick else 1024
    square = torch.ones(size, size, dtype=PRECISIONS[precision])
    for kind, rows in kinds.items():
        for _ in range(1 if quick else WARM):
            for each in contestants.values():
                each.ask("step", kind)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        gemm = list[float]()
        for _ in range(rounds):
            for name, each in contestants.items():
                seconds[name].append(each.ask("step", kind))
            gemm += race({GEMM: lambda _: products(square)}, 1, clock())[GEMM]
        flops = float(StepFlops.of(trainings.ours).of_batch(rows.batch, trainings.ours.code_of))
        memory = {name: each.ask("memory", kind) for name, each in contestants.items()}
        found["rows"][kind] = {
            "tokens": rows.batch.num_tokens, "flops": flops, "gemm_flops": PRODUCTS * 2 * size**3 / min(gemm),
            "steps": {name: {"loss": losses[kind][name], "seconds": seconds[name], "peak_bytes": memory[name]}
                      for name in names},
        }  # fmt: skip
    for each in contestants.values():
        each.end()
    return found


def products(square: Tensor) -> None:
    """Multiply matrices: what this machine does at best."""
    for _ in range(PRODUCTS):
        square @ square


def heads(size: str, precision: str, rounds: int) -> dict[str, Any]:
    """Measure loss heads forward and backward, z-loss included where there is one; products in a precision."""
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
        with torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "float32"):
            loss = loss_of()
        loss.backward()

    gradients = sum(each.nbytes for each in (hidden, head.weight))
    memory = {name: peak_bytes(partial(step, loss), forget) for name, loss in losses.items()}
    seconds = race({name: (lambda _, loss=loss: step(loss)) for name, loss in losses.items()}, rounds, clock())  # type: ignore[misc]
    return {
        "targets": targets, "dim": dim, "classes": classes, "precision": precision, "gradient_bytes": gradients,
        "heads": {name: {"seconds": seconds[name], "peak_bytes": memory[name]} for name in losses},
    }  # fmt: skip


def tables(found: dict[str, Any]) -> str:
    """Write the figures as Markdown."""
    parts = list[str]()
    for name, each in found["steps"].items():
        head = f"**{name}**, {each['parameters'] / 1e6:.0f} M parameters, {ROWS} x {LENGTH} tokens. {_where(each)}"
        parts += [head, "\n".join(_step_lines(each))]
    for name, each in found["gpu"].items():
        parts += accelerated.lines(name, each)
    for each in found["heads"].values():
        shape = f"{each['targets']} targets, width {each['dim']}, {each['classes']} classes"
        head = f"Loss head of {shape}, products in {each['precision']}."
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
    def beside_gradients(name: str) -> int | None:
        peak = each["heads"][name]["peak_bytes"]
        return None if peak is None else max(0, peak - each["gradient_bytes"])

    full, most = each["heads"]["full logits"]["seconds"], beside_gradients("full logits")
    lines = ["| head | seconds | x full logits | memory beside gradients | of full logits' |",
             "| --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for name, head in each["heads"].items():
        extra = beside_gradients(name)
        share = "" if extra is None or not most else f"{extra / most:.1%}"
        lines.append(
            f"| {name} | {statistics.median(head['seconds']):.2f} | {times(head['seconds'], full):.2f} | "
            f"{_megabytes(extra)} | {share} |"
        )
    return lines


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.0f} MB"


def on_gpu(found: dict[str, Any], options: argparse.Namespace, about: dict[str, Any]) -> None:
    """Measure the shapes that are asked of a GPU; what was never measured says so."""
    goals = found.setdefault("gpu", {})
    for name in GOALS:
        goals.setdefault(name, {"not_measured": "no CUDA device"})
    if options.device == "cpu" or not torch.cuda.is_available():
        return
    for name in options.shapes or GOALS:
        print(f"{name} on a GPU", file=sys.stderr)
        measured = accelerated.measure(accelerated.TRAININGS[name], options.device, options.rounds)
        goals[name] = {**about, "device": "cuda", **measured}
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: shapes of 160 M, 1 B and 7 B")
    parser.add_argument("--shapes", nargs="*", choices=[*TRAINED, *GOALS], help="by default 40m, on a GPU all")
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
        on_gpu(found, options, about)
        if options.device == "cuda":
            options.shapes, options.heads = [], []
        for shape in ["40m"] if options.shapes is None else options.shapes:
            for precision in options.precisions:
                print(f"{shape} {precision}", file=sys.stderr)
                measured = measure(TRAINED[shape], precision, options.rounds, quick=options.quick)
                found["steps"][f"{shape} {precision}"] = {**about, **measured}
                options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        for size in options.heads:
            for precision in options.precisions:
                print(f"head {size} {precision}", file=sys.stderr)
                found["heads"][f"{size} {precision}"] = {**about, **heads(size, precision, options.rounds)}
    publish(found, tables(found), options.out, options.readme, "training")


if __name__ == "__main__":
    main()
