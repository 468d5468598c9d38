"""Measure image tokens/s of sampling beside transformers and DeepSeek's Janus loop, on identical random weights.

    python benchmarks/sampling.py --shapes 25m 150m --readme
    python benchmarks/sampling.py --quick --out /tmp/sampling.json

Runs are interleaved: a round runs every sampler once, the figures are medians over rounds of whole pictures, prompt
included and pixels not. Results are kept by shape, family and machine in a JSON file; what is not run stays as it was.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from figures import bars, publish, tables
from ours import VARIANTS, Ours, Variant
from peers import FAMILIES, PRECISIONS, SHAPES, Family, Shape
from provenance import HERE, provenance
from torch import Tensor

MIXED_REQUESTS = 32
KL_PICTURES = 4


@dataclass(frozen=True)
class Runner:
    """A sampler that takes part: how many pictures and which seed (None: greedy) to their codes."""

    name: str
    precision: str
    weight_bytes: float
    codes: Callable[[int, int | None], Tensor]
    logits: Callable[[Tensor], Tensor]

    @property
    def label(self) -> str:
        """Name it in tables."""
        return f"{self.name} {self.precision}"


@dataclass(frozen=True)
class Options:
    """What the command line asks for, of one shape."""

    shape: Shape
    side: int
    batches: Sequence[int]
    rounds: int
    mixed: int
    bandwidth: float
    variants: Sequence[Variant]


def theirs(family: Family, models: Mapping[str, Any], ours: Ours) -> list[Runner]:
    """Return everyone who samples with transformers' models."""

    def codes(model: Any, peer: Any, count: int, seed: int | None) -> Tensor:
        prompts = ours.prompts(count)
        written = peer(model, prompts, seed)
        return torch.stack([ours.read(ids) for ids in written]) if prompts.ends else written.cpu()

    def logits(model: Any, codes: Tensor) -> Tensor:
        return family.logits(model, ours.prompts(len(codes)), codes.to(ours.pipe.model.device))

    return [
        Runner(name, precision, PRECISIONS[precision].itemsize, partial(codes, model, peer), partial(logits, model))
        for name, peer in family.peers.items()
        for precision, model in models.items()
    ]


def race(
    runs: Mapping[str, Callable[[int], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Run everyone once a round, in turn; return the seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            synchronize()
            start = clock()
            run(number)
            synchronize()
            seconds[name].append(clock() - start)
            print(f"  round {number + 1}: {name} {seconds[name][-1]:.2f} s", file=sys.stderr)
    return seconds


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def read_bandwidth(device: str, numbers: int) -> float:
    """Return the bytes/s at which a sum reads a tensor; it must be far larger than the caches."""
    values = torch.ones(numbers, device=device)
    values.sum()
    return values.numel() * values.element_size() / min(race({"sum": lambda _: values.sum()}, 7)["sum"])


def measure(family: Family, folder: Path, options: Options) -> dict[str, Any]:
    """Measure one family at one shape."""
    device = options.shape.device
    family.write(folder, options.shape, options.side)
    ours = [Ours(folder, variant, device, family.guidance) for variant in options.variants]
    models = {precision: family.load(folder, dtype, device) for precision, dtype in PRECISIONS.items()}
    weights = family.weights_a_step(models["float32"])
    runners = theirs(family, models, ours[0])
    runners += [Runner("anymodal", each.variant.name, each.variant.weight_bytes, each.codes, each.logits)
                for each in ours]  # fmt: skip
    tokens = options.side**2
    steps = tokens if ours[0].size is None else tokens + options.side + 2  # ends of lines, EOF and EOI
    samplers: dict[str, dict[str, Any]] = {
        runner.label: {"name": runner.name, "precision": runner.precision, "kl": None, "pictures": {}}
        for runner in runners
    }
    for count in options.batches:
        greedy = {runner.label: runner.codes(count, None) for runner in runners}  # warms up, too
        seconds = race({runner.label: partial(runner.codes, count) for runner in runners}, options.rounds)
        for runner in runners:
            median = statistics.median(seconds[runner.label])
            same = (greedy[runner.label] == greedy[runners[0].label]).double().mean()
            samplers[runner.label]["pictures"][str(count)] = {
                "tokens_per_s": count * tokens / median,
                "of_bandwidth": runner.weight_bytes * weights * steps / median / options.bandwidth,
                "same_greedy_codes": float(same),
                "seconds": seconds[runner.label],
            }
    for label, kl in divergences(runners).items():
        samplers[label]["kl"] = kl
    embedded = models["float32"].get_input_embeddings().weight.numel()
    return {
        "tokens": tokens, "weights": weights, "parameters": weights + embedded, "guidance": family.guidance,
        "samplers": list(samplers.values()), "mixed": mixed(ours, options) if options.mixed else [],
    }  # fmt: skip


def divergences(runners: Sequence[Runner]) -> dict[str, float]:
    """Return the mean KL (nats) of next-code distributions from transformers' in float32, behind the same codes."""
    reference = runners[0]
    codes = reference.codes(KL_PICTURES, 0)
    truth = reference.logits(codes).double().log_softmax(-1)
    found = {}
    for runner in runners[1:]:
        logs = runner.logits(codes).double().log_softmax(-1)
        found[runner.label] = float((truth.exp() * (truth - logs)).sum(-1).mean())
    return found


def mixed(ours: Sequence[Ours], options: Options) -> list[dict[str, Any]]:
    """Time pictures and texts of different settings in one batch against one after another."""
    count = options.mixed

    def apart(each: Ours, seed: int) -> None:
        for request in each.mixed(count, seed):
            each.generate([request])

    def together(each: Ours, seed: int) -> None:
        each.generate(each.mixed(count, seed))

    found = []
    for each in ours:
        each.generate(each.mixed(count, 0))
        seconds = race({f"{each.variant.name} mixed, together": partial(together, each),
                        f"{each.variant.name} mixed, apart": partial(apart, each)}, options.rounds)  # fmt: skip
        batch, single = seconds.values()
        found.append({"precision": each.variant.name, "requests": count, "together_s": batch, "apart_s": single})
    return found


def runs_here(variant: Variant, device: str, *, quick: bool) -> bool:
    """Say whether a variant takes part: int8 and the native kernel are for CPUs, compiling takes minutes."""
    for_cpu = variant.load.get("native", False) or variant.load["dtype"] == "int8"
    return not (quick and variant.compiles) and not (for_cpu and device != "cpu")


def measured_on(shape: Shape, bandwidth: float) -> dict[str, Any]:
    """Return what stands beside every figure."""
    return {
        **provenance(), "torch": torch.__version__, "transformers": version("transformers"),
        "threads": torch.get_num_threads(), "device": shape.device, "bandwidth_gb_s": bandwidth / 1e9,
    }  # fmt: skip


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let torch use this many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def settings(threads: int) -> Iterator[None]:
    """Use this many threads and let transformers be silent; give both back."""
    from transformers.utils import logging  # noqa: PLC0415

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with using_threads(threads):
            yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def machine_of(measured: dict[str, Any]) -> str:
    """Name what a figure belongs to."""
    machine = measured["machine"]
    return str(machine["Accelerator"] if measured["device"] == "cuda" else machine["Processor"])


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=[name for name in SHAPES if name != "toy"])
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], help="pictures at once")
    parser.add_argument("--tokens", type=int, help="codes of a picture, a square; by default as the shape has it")
    parser.add_argument(
        "--variants", nargs="+", choices=[each.name for each in VARIANTS], help="of ours; all by default"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mixed", type=int, default=MIXED_REQUESTS, help="requests of the mixed batch, if any")
    parser.add_argument("--out", type=Path, default=HERE / "sampling.json", help="the plot gets its name, too")
    parser.add_argument("--readme", type=Path, nargs="?", const=HERE / "README.md", help="splice the tables into it")
    parser.add_argument("--quick", action="store_true", help="the toy shape, one round")
    options = parser.parse_args(argv)
    if options.quick:
        options.shapes, options.rounds, options.batches, options.mixed = ["toy"], 1, [1, 3], 4
    if options.tokens is not None and math.isqrt(options.tokens) ** 2 != options.tokens:
        parser.error(f"--tokens must be a square such as 64, got {options.tokens}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write them."""
    options = options_of(argv)
    found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    with settings(options.threads):
        for name in options.shapes:
            shape = SHAPES[name]
            if shape.device == "cuda" and not torch.cuda.is_available():
                found.setdefault(name, {"not_measured": "no CUDA device"})
                continue
            bandwidth = read_bandwidth(shape.device, 2**22 if options.quick else 2**28)
            asked = Options(
                shape=shape, side=math.isqrt(options.tokens or shape.tokens), batches=options.batches,
                rounds=options.rounds, mixed=options.mixed, bandwidth=bandwidth,
                variants=[each for each in VARIANTS if each.name in (options.variants or [each.name])
                          and runs_here(each, shape.device, quick=options.quick)],
            )  # fmt: skip
            families = found.get(name, {}).get("families", {})
            found[name] = {"families": families}
            beside = {**measured_on(shape, bandwidth), "rounds": options.rounds}
            for family in options.families:
                print(f"{name} {family}", file=sys.stderr)
                with tempfile.TemporaryDirectory() as folder:
                    measured = {**beside, **measure(FAMILIES[family], Path(folder), asked)}
                families.setdefault(family, {})[machine_of(measured)] = measured
                options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = {name: found[name] for name in SHAPES if name in found}
    options.out.with_suffix(".svg").write_text(bars(found), encoding="utf-8")
    publish(found, tables(found), options.out, options.readme, "sampling")


if __name__ == "__main__":
    main()
