"""Count the passes that speculation saves on the embedded model, and the seconds.

    python benchmarks/speculation.py --readme

Pictures are drawn one after another; a round draws every picture with every setting, in turn.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import publish
from peers import SHAPES
from sampling import HERE, measured_on, using_threads

import anymodal
from anymodal.data.scenes import scene_samples
from anymodal.decoding.config import EngineConfig, SamplingConfig
from anymodal.decoding.request import Request
from anymodal.decoding.sampler import Sampler

PLAIN = "none"
SETTINGS: dict[str, dict[str, Any]] = {
    "the model's own settings": {},
    "temperature 1, all codes": {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
    "temperature 0": {"temperature": 0.0},
}


def engines(windows: Sequence[int]) -> dict[str, EngineConfig]:
    """Return what is compared."""
    kinds = {f"jacobi, window {size}": EngineConfig(speculation="jacobi", window=size) for size in windows}
    accept = {f"accept, window {size}": EngineConfig(speculation="accept", window=size) for size in windows[-1:]}
    return {PLAIN: EngineConfig(), **kinds, **accept}


def requests_of(pipe: anymodal.Pipeline, count: int, changes: dict[str, Any]) -> list[Request]:
    """Ask for names and for scenes of held-out combinations."""
    samples = scene_samples("held-out", count=count, seed=5, concepts=100)
    captions = [sample.members["txt"].decode() for sample in samples]
    default = pipe.generation.image
    sampling = SamplingConfig(**{**{name: getattr(default, name) for name in default.__dataclass_fields__}, **changes})
    grid = pipe.prompter.grid(None, None)
    return [pipe.prompter.image_request([text], None, sampling, grid, seed) for seed, text in enumerate(captions)]


def measure(pipe: anymodal.Pipeline, count: int, rounds: int, windows: Sequence[int]) -> list[dict[str, Any]]:
    """Draw with every setting and engine; return passes, equal pictures and seconds."""
    rows = []
    for setting, changes in SETTINGS.items():
        requests = requests_of(pipe, count, changes)
        samplers = {name: Sampler(pipe.model, config) for name, config in engines(windows).items()}
        seconds: dict[str, list[float]] = {name: [] for name in samplers}
        drawn: dict[str, list[list[int]]] = {}
        passes: dict[str, list[int]] = {}
        for _ in range(rounds):
            for name, sampler in samplers.items():
                start = time.perf_counter()
                drawn[name], passes[name] = [], []
                for request in requests:
                    drawn[name].append(sampler.generate([request])[0].tolist())
                    passes[name].append(sampler.usage.passes)
                seconds[name].append(time.perf_counter() - start)
        for name in samplers:
            pairs = zip(drawn[name], drawn[PLAIN], strict=True)
            ratios = [plain / own for plain, own in zip(seconds[PLAIN], seconds[name], strict=True)]
            rows.append({
                "setting": setting, "engine": name, "passes": statistics.mean(passes[name]),
                "equal": statistics.mean(one == other for one, other in pairs), "speed": statistics.median(ratios),
            })  # fmt: skip
    return rows


def table(found: dict[str, Any]) -> str:
    """Write the figures as Markdown."""
    head = (
        f"The embedded model, {found['pictures']} pictures of held-out scenes one after another, float32. "
        f"{found['machine']['Processor']}, {found['threads']} thread(s); {found['date']}, commit {found['commit']}."
    )
    lines = ["| codes are chosen with | speculation | passes a picture | the pictures of plain sampling | speed |",
             "| --- | --- | ---: | ---: | ---: |"]  # fmt: skip
    lines += [
        f"| {row['setting']} | {row['engine']} | {row['passes']:.1f} | {row['equal']:.0%} | {row['speed']:.2f} |"
        for row in found["rows"]
    ]
    return "\n".join([head, "", *lines])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--count", type=int, default=24, help="pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", nargs="+", type=int, default=[8, 64, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "speculation.json")
    parser.add_argument("--readme", type=Path, nargs="?", const=HERE / "README.md", help="splice the table into it")
    options = parser.parse_args(argv)
    with using_threads(options.threads):
        pipe = anymodal.from_pretrained(options.model, device="cpu", dtype="float32")
        rows = measure(pipe, options.count, options.rounds, options.windows)
    found = {**measured_on(SHAPES["toy"], 0.0), "threads": options.threads, "pictures": options.count, "rows": rows}
    publish(found, table(found), options.out, options.readme, "speculation")


if __name__ == "__main__":
    main()
