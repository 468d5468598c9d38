"""What `sampling.py` measured, as tables of Markdown and as a plot."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

RATIOS = ("transformers float32", "transformers bfloat16", "Janus loop bfloat16")
ROUNDING = 1e-6  # below it, a KL tells the rounding of float32
WIDTH, NAMES, NUMBERS, LINE = 640, 170, 60, 18
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}.title{font-weight:600}.bar{fill:#afb8c1}.ours{fill:#1f883d}"
    "@media(prefers-color-scheme:dark){text{fill:#9198a1}.bar{fill:#656c76}}"
)
Found = Mapping[str, Any]


def tables(found: Found) -> str:
    """Write every measured shape as a table, with what it was measured on."""
    return "\n\n".join(text for name, shape in found.items() for text in _shape(name, shape))


def _shape(name: str, shape: Found) -> Iterator[str]:
    if "not_measured" in shape:
        yield f"**{name}**: not measured ({shape['not_measured']})."
        return
    for family, measured in _measured(shape):
        machine = measured["machine"]
        where = "; ".join([machine["Processor"], *([machine["Accelerator"]] if measured["device"] == "cuda" else [])])
        batches = list(measured["samplers"][0]["pictures"])
        at_once = "picture" if batches == ["1"] else "pictures"
        yield (
            f"**{name}**, {family.capitalize()} of {measured['parameters'] / 1e6:.0f} M parameters, "
            f"{measured['tokens']} codes a picture, guidance {measured['guidance']:g}; "
            f"{' / '.join(batches)} {at_once} at once. {where}; read bandwidth {measured['bandwidth_gb_s']:.1f} GB/s; "
            f"torch {measured['torch']}, transformers {measured['transformers']}; medians of {measured['rounds']}; "
            f"{measured['date']}, commit {measured['commit']}."
        )
        yield "\n".join(_rows(measured))
        for row in measured["mixed"]:
            together, apart = row["together_s"], row["apart_s"]
            yield (
                f"anymodal {row['precision']}, {row['requests']} mixed requests: one batch {median(together):.2f} s, "
                f"one after another {median(apart):.2f} s, **{times(together, apart):.1f} times** as fast together."
            )


def _measured(shape: Found) -> Iterator[tuple[str, Found]]:
    """Yield what was measured of a shape, a machine after another."""
    for family, machines in shape.get("families", {}).items():
        yield from ((family, measured) for measured in machines.values())


def _rows(measured: Found) -> Iterator[str]:
    by_name = {_label(sampler): sampler["pictures"] for sampler in measured["samplers"]}
    ratios = [name for name in RATIOS if name in by_name]
    columns = ["codes/s", *(f"x {name}" for name in ratios), "of the bandwidth", "KL, nats", "same greedy codes"]
    yield f"| sampler | {' | '.join(columns)} |"
    yield f"| --- |{' ---: |' * len(columns)}"
    for sampler in measured["samplers"]:
        pictures = sampler["pictures"]

        def cells(cell: Callable[[Any, Any], str], beside: Found = pictures, pictures: Found = pictures) -> str:
            return " / ".join(cell(pictures[count], beside[count]) for count in pictures)

        values = [
            cells(lambda row, _: f"{row['tokens_per_s']:,.0f}"),
            *(cells(lambda row, other: f"{times(row['seconds'], other['seconds']):.2f}", by_name[name])
              for name in ratios),
            cells(lambda row, _: f"{row['of_bandwidth']:.0%}"),
            _distance(sampler["kl"]),
            cells(lambda row, _: f"{row['same_greedy_codes']:.0%}"),
        ]  # fmt: skip
        yield f"| {_label(sampler)} | {' | '.join(values)} |"


def bars(found: Found) -> str:
    """Draw codes/s as bars, a group for every shape, family and number of pictures."""
    parts, y = list[str](), 0
    for name, shape in found.items():
        for family, measured in _measured(shape):
            for count in measured["samplers"][0]["pictures"]:
                title = f"{name} {family}, pictures at once: {count}, codes/s; {measured['machine']['Processor']}"
                parts.append(f'<text class="title" x="0" y="{y + LINE}">{escape(title)}</text>')
                y += LINE + 6
                rates = {_label(each): each["pictures"][count]["tokens_per_s"] for each in measured["samplers"]}
                for label, rate in rates.items():
                    width = (WIDTH - NAMES - NUMBERS) * rate / max(rates.values())
                    kind = "bar ours" if label.startswith("anymodal") else "bar"
                    parts.append(
                        f'<text x="{NAMES - 8}" y="{y + 13}" text-anchor="end">{escape(label)}</text>'
                        f'<rect class="{kind}" x="{NAMES}" y="{y + 3}" width="{width:.1f}" height="{LINE - 5}"/>'
                        f'<text x="{NAMES + width + 6:.1f}" y="{y + 13}">{rate:,.0f}</text>'
                    )
                    y += LINE
                y += LINE
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def times(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Return how many times as fast as others a sampler is: the median over rounds, whose runs share a load."""
    return median(other / own for own, other in zip(seconds, others, strict=True))


def publish(found: Found, text: str, out: Path, readme: Path | None, name: str) -> None:
    """Write what was measured as JSON, print it as text, and put the text between the markers of its name in a page."""
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(text)
    if readme is not None:
        splice(readme, text, name)


def splice(path: Path, text: str, name: str = "sampling") -> None:
    """Put text between the markers of this name in a file.

    Raises:
        ValueError: the file has no such markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path} must hold the lines {begin} and {end}, between which tables go; add them.")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def _distance(kl: float | None) -> str:
    if kl is None:
        return ""
    return f"{kl:.1e}" if kl > ROUNDING else f"< {ROUNDING:.0e}"


def _label(sampler: Found) -> str:
    return f"{sampler['name']} {sampler['precision']}"
