"""A training step on a GPU, for `training.py`: tokens/s, and the share of the device's arithmetic (MFU).

Everyone trains alone, in a process of its own that takes its memory along: a model of 7 B with AdamW in float32 leaves
no room for another. Rows are full of packed documents, in bfloat16 autocast, as a run on a GPU has them.
"""

import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch
from contestants import CODES, RUNS, VOCABULARY, Rows, llama
from peers import SHAPES, Shape
from sampling import synchronize
from torch import Tensor, nn

from anymodal.learning.config import OptimizerConfig
from anymodal.learning.flops import StepFlops, measured_flops, peak_flops
from anymodal.learning.optimizer import build_optimizer, trainable
from anymodal.learning.passing import through_of
from anymodal.model.config import AnyModalConfig
from anymodal.model.layout import Layout
from anymodal.model.unified import AnyModal
from anymodal.published.llama import read_transformer
from anymodal.tokens.vocabulary import Vocabulary

WARM = 3  # steps before the first that counts
GEMM_SIZE = 8192
SMALL = replace(SHAPES["150m"], text_size=VOCABULARY - CODES, device="cuda")


@dataclass(frozen=True)
class Training:
    """A model, the rows of a step, and who trains it: variants of ours by `RUNS`, and transformers'."""

    shape: Shape
    rows: int
    length: int
    names: tuple[str, ...]


ALL = ("transformers", *(f"anymodal{name}" for name in RUNS))
TRAININGS = {
    "160m": Training(SMALL, 16, 2048, ALL),
    "1b":   Training(SHAPES["1b"], 8, 2048, ALL),
    "7b":   Training(SHAPES["7b"], 4, 2048, ("anymodal, activations computed again",)),
    "toy":  Training(SHAPES["toy"], 2, 64, ("transformers", "anymodal", "anymodal, activations computed again")),
}  # fmt: skip
"""The shapes of the goals, and one to see that it runs."""


def measure(training: Training, device: str, rounds: int) -> dict[str, Any]:
    """Measure everyone in turn; who does not fit into the memory is noted as such."""
    dtype = torch.bfloat16
    found: dict[str, Any] = {
        "rows": training.rows,
        "length": training.length,
        "peak_flops": peak_flops(torch.device(device), dtype),
        "gemm_flops": measured_flops(torch.device(device), dtype, GEMM_SIZE if device == "cuda" else 128),
        "steps": {},
    }
    context = multiprocessing.get_context("spawn")
    for name in training.names:
        here, there = context.Pipe()
        process = context.Process(target=train, args=(there, training, name, device, rounds))
        process.start()
        there.close()
        try:
            found["steps"][name] = here.recv()
        except EOFError:
            found["steps"][name] = {"not_measured": "it died"}
        process.join()
    return found


def train(connection: Connection, training: Training, name: str, device: str, rounds: int) -> None:
    """Take steps and tell of them."""
    try:
        connection.send(steps(training, name, torch.device(device), rounds))
    except torch.OutOfMemoryError:
        connection.send({"not_measured": "out of memory"})


def steps(training: Training, name: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """Take warm steps, then those that count, and return their seconds with what they computed."""
    shape = training.shape
    vocabulary = shape.text_size + shape.codebook_size
    rows = Rows.draw(vocabulary, packed=True, count=training.rows, length=training.length)
    torch.manual_seed(0)
    ours = "anymodal" in name
    built = ours_of(shape, training.length, device) if ours else llama(shape, vocabulary, training.length).to(device)
    placed, layout = on(rows, device), Layout.of(rows.batch, code_of(shape)).to(device)  # of the host, as in a run
    loss_of = partial(ours_loss, built, placed, layout) if ours else partial(their_loss, built, placed)
    counted = built if isinstance(built, AnyModal) else ours_of(shape, training.length, torch.device("meta"))
    flops = float(StepFlops.of(counted).of_batch(rows.batch, code_of(shape)))
    if isinstance(built, AnyModal):
        built.transformer.through = through_of(RUNS[name.removeprefix("anymodal")])
    optimizer = build_optimizer(trainable(built), OptimizerConfig())
    seconds = list[float]()
    for _ in range(WARM + rounds):
        synchronize()
        begun = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(built.parameters(), 1.0)
        optimizer.step()
        synchronize()
        seconds.append(time.perf_counter() - begun)
    return {
        "parameters": sum(each.numel() for each in built.parameters()), "tokens": rows.batch.num_tokens,
        "flops": flops, "seconds": seconds[WARM:], "loss": float(loss.detach()),
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }  # fmt: skip


def ours_of(shape: Shape, length: int, device: torch.device) -> AnyModal:
    """Build ours with the shape of theirs."""
    with torch.device("meta"):
        config = llama(shape, shape.text_size + shape.codebook_size, length).config.to_dict()
    vocabulary = Vocabulary.build(text_size=shape.text_size, specials={"pad": 0}, codebook_size=shape.codebook_size)
    with device:
        return AnyModal(AnyModalConfig(transformer=read_transformer(config)), vocabulary).to(device).train()


def code_of(shape: Shape) -> Tensor:
    """Return the code of every id, -1 where it is none: codes stand behind text."""
    return (torch.arange(shape.text_size + shape.codebook_size) - shape.text_size).clamp(min=-1)


def on(rows: Rows, device: torch.device) -> Rows:
    """Move rows to a device."""
    return Rows(rows.batch.to(device), None if rows.mask is None else rows.mask.to(device))


def ours_loss(model: AnyModal, rows: Rows, layout: Layout) -> Tensor:
    """Compute our loss a token."""
    losses = model(rows.batch, 0.0, layout).losses
    return torch.stack([part.total for part in losses.values()]).sum() / rows.batch.targets.numel()


def their_loss(model: Any, rows: Rows) -> Tensor:
    """Compute their loss a token; documents of a row are kept apart by a dense mask."""
    batch = rows.batch
    found: Tensor = model(
        input_ids=batch.ids, attention_mask=rows.mask, position_ids=batch.positions, labels=batch.targets,
        shift_labels=batch.targets, use_cache=False,
    ).loss  # fmt: skip
    return found


def lines(name: str, measured: dict[str, Any]) -> Iterator[str]:
    """Yield what was measured of a shape as Markdown, or that it was not."""
    if "not_measured" in measured:
        yield f"**{name}** on a GPU: not measured ({measured['not_measured']})."
        return
    yield (
        f"**{name}** on {measured['machine'].get('Accelerator', measured['machine']['Processor'])}, bfloat16, "
        f"{measured['rows']} x {measured['length']} tokens of packed documents; {measured['peak_flops'] / 1e12:.0f} "
        f"TFLOP/s, of which a product reaches {measured['gemm_flops'] / 1e12:.0f}; torch {measured['torch']}, "
        f"transformers {measured['transformers']}; medians of {measured['rounds']}; {measured['date']}, commit "
        f"{measured['commit']}."
    )
    table = ["| step | parameters | tokens/s | MFU | of GEMM peak | memory | loss |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for step, each in measured["steps"].items():
        if "not_measured" in each:
            table.append(f"| {step} | | not measured ({each['not_measured']}) | | | | |")
            continue
        seconds = median(each["seconds"])
        memory = "" if each["peak_bytes"] is None else f"{each['peak_bytes'] / 1e9:.1f} GB"
        shares = " | ".join(f"{each['flops'] / seconds / measured[peak]:.0%}" for peak in ("peak_flops", "gemm_flops"))
        table.append(
            f"| {step} | {each['parameters'] / 1e6:,.0f} M | {each['tokens'] / seconds:,.0f} | "
            f"{shares} | {memory} | {each['loss']:.4f} |"
        )
    yield "\n".join(table)
