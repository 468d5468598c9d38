"""Curves of a run as inline SVG, coloured by the page that holds them."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 30
MAX_POINTS = 240
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """Hold one line of a chart; held-out lines are drawn dashed.

    >>> Curve("loss", ((0.0, 2.0), (10.0, 1.0))).points[-1]
    (10.0, 1.0)
    """

    label: str
    points: tuple[tuple[float, float], ...]
    held_out: bool = False


def read_curves(metrics: Path, labels: Mapping[str, str]) -> list[Curve]:
    """Read columns of a run's `logs/metrics.csv`; a column that never has a number is left out.

    Raises:
        ValueError: there is no such file, or it has no column `step`.
    """
    if not metrics.is_file():
        raise ValueError(f"curves are drawn from a run's logs/metrics.csv, there is no {metrics}; check the folder.")
    with metrics.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and "step" not in rows[0]:
        raise ValueError(f"{metrics} must have a column step, got {', '.join(rows[0])}.")
    found = []
    for column, label in labels.items():
        values = [(float(row["step"]), float(row[column])) for row in rows if row.get(column)]
        points = tuple(point for point in values if math.isfinite(point[1]))
        if points:
            found.append(Curve(label, points, held_out=column.startswith("held_out")))
    return found


def draw_chart(curves: Sequence[Curve], title: str) -> str:
    """Draw curves over optimizer steps with axes, grid and legend.

    Raises:
        ValueError: there is no point to draw.
    """
    if not any(curve.points for curve in curves):
        raise ValueError(f"the chart {title!r} needs at least one point, got none.")
    steps = max(point[0] for curve in curves for point in curve.points) or 1.0
    values = [point[1] for curve in curves for point in curve.points]
    ticks = nice_ticks(min(0.0, *values) if min(values) < 0.35 * max(values) else min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / steps
        return x, TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low))

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in ticks:
        y = place(0.0, tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
    for share in (0, 0.5, 1):
        anchor = ("start", "middle", "end")[round(2 * share)]
        x = place(share * steps, low)[0]
        word = " steps" if share == 1 else ""
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="{anchor}">{share * steps:,.0f}{word}</text>')
    for number, curve in enumerate(curves):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in _thinned(curve.points)))
        dashed = " dashed" if curve.held_out else ""
        parts.append(f'<polyline class="line c{number % 4}{dashed}" points="{path}"/>')
    return "\n".join([*parts, "</svg>", _legend(curves)])


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers that span low to high.

    >>> nice_ticks(0.1, 3.7)
    [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    rough = max(high - low, 1e-6 * max(1.0, abs(high))) / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), math.floor(low / step + 1e-9) + 1)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _thinned(points: Points) -> Points:
    every = -(-len(points) // MAX_POINTS)
    kept = list(points[::every])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _legend(curves: Sequence[Curve]) -> str:
    items = [
        f'<span><i class="c{number % 4}{" dashed" if curve.held_out else ""}"></i>{escape(curve.label)} '
        f"<b>{curve.points[-1][1]:.3g}</b></span>"
        for number, curve in enumerate(curves)
    ]
    return f'<p class="legend">{"".join(items)}</p>'
