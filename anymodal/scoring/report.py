"""A run as one page: pictures, questions, scores, curves, times. Nothing outside the file is needed to show it."""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from PIL import Image

from anymodal.scoring.charts import Curve, draw_chart
from anymodal.scoring.style import STYLE


@dataclass(frozen=True)
class Drawing:
    """Hold a drawn picture beside the truth; `memorised` says that its very prompt and picture were trained on."""

    prompt: str
    real: Image.Image
    reconstructed: Image.Image
    drawn: Image.Image
    memorised: bool
    right: bool
    note: str = ""


@dataclass(frozen=True)
class Answered:
    """Hold a question about a picture with the model's answer and the truth."""

    image: Image.Image
    question: str
    answer: str
    truth: str
    right: bool


@dataclass(frozen=True)
class Score:
    """Hold a result of `count` pictures or questions next to what it is to be compared with.

    The unit "%" means a share in [0, 1]; any other is that of the value as it stands. `blind` is what the same model
    reaches that is not shown the picture; `ceiling` the best that the image tokenizer, or what was learned, allows.

    >>> Score("yes-no questions", 0.75, 8, chance=0.5).describe()
    'yes-no questions                                    75.0 % of 8, chance 50.0 %'
    """

    name: str
    value: float
    count: int
    chance: float | None = None
    ceiling: float | None = None
    blind: float | None = None
    unit: str = "%"

    def describe(self) -> str:
        """Return the score as a line, for terminals."""
        beside = {"chance": self.chance, "blind": self.blind, "ceiling": self.ceiling}
        told = [f", {name} {self.spell(value)}" for name, value in beside.items() if value is not None]
        return f"{self.name:<50}{self.spell(self.value):>8} of {self.count}{''.join(told)}"

    def spell(self, value: float) -> str:
        """Return a value with the unit."""
        return f"{100 * value:.1f} %" if self.unit == "%" else f"{value:.4g} {self.unit}".strip()


@dataclass(frozen=True)
class Stage:
    """Hold how long a part of the road took."""

    name: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """Hold everything that a report tells.

    >>> page = write_page(Report(title="A run", lead="From nothing.", stages=(Stage("learn", 2.0),)))
    >>> page.startswith("<!doctype html>"), "http" in page
    (True, False)
    """

    title: str
    lead: str
    drawings: tuple[Drawing, ...] = ()
    answers: tuple[Answered, ...] = ()
    scores: dict[str, tuple[Score, ...]] = field(default_factory=dict)
    charts: dict[str, tuple[Curve, ...]] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)


def save_report(report: Report, path: Path) -> None:
    """Write the page whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(write_page(report), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_page(report: Report) -> str:
    """Return a report as one HTML page."""
    seen = [each for each in report.drawings if each.memorised]
    unseen = [each for each in report.drawings if not each.memorised]
    sections = [
        _section(
            "Drawn by name", "These names and pictures were trained on: this is memory.", _drawings(seen, "memorised")
        ),
        _section(
            "Drawn scenes, never seen in training",
            "Each puts concepts, counts, colours or places together as no training sample did.",
            _drawings(unseen, "never seen"),
        ),
        _section("Questions", "About scenes whose combinations training never showed.", _answers(report.answers)),
        _section(
            "Scores",
            "Judged by what did not train with the model. The tick marks chance; the ceiling is the truth itself after "
            "the image tokenizer.",
            "".join(_scores(name, scores) for name, scores in report.scores.items()),
        ),
        _section("Learning", "", _charts(report.charts)),
        _section("Time", "", _stages(report.stages)),
        _section("Made of, and made on", "", _facts(report.facts)),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    made = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{escape(report.title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><main>\n<header><h1>{escape(report.title)}</h1>"
        f'<p class="lead">{escape(report.lead)}</p></header>\n{"".join(sections)}'
        f"<footer>Made by anymodal on {made}.</footer>\n</main></body></html>\n"
    )


def _section(title: str, lead: str, body: str) -> str:
    if not body:
        return ""
    told = f'<p class="told">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{told}{body}</section>\n"


def _picture(image: Image.Image, label: str) -> str:
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    source = base64.b64encode(data.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/png;base64,{source}" alt="{escape(label)}" {size}>'


def _mark(right: bool) -> str:
    return '<span class="mark yes">right</span>' if right else '<span class="mark no">wrong</span>'


def _drawings(drawings: Sequence[Drawing], label: str) -> str:
    cards = []
    for each in drawings:
        trio = (("real", each.real), ("reconstructed", each.reconstructed), ("drawn", each.drawn))
        figures = "".join(
            f'<figure class="{name}">{_picture(image, f"{each.prompt}, {name}")}'
            f"<figcaption>{name}</figcaption></figure>"
            for name, image in trio
        )
        note = f'<span class="note">{escape(each.note)}</span>' if each.note else ""
        cards.append(
            f'<article class="card"><div class="trio">{figures}</div><p class="prompt">{escape(each.prompt)}</p>'
            f'<p class="tags"><span class="tag {"seen" if each.memorised else "unseen"}">{label}</span>'
            f"{_mark(each.right)}{note}</p></article>"
        )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _answers(answers: Sequence[Answered]) -> str:
    cards = []
    for each in answers:
        truth = "" if each.right else f'<span class="note">truth: {escape(each.truth)}</span>'
        cards.append(
            f'<article class="card question">{_picture(each.image, "the picture asked about")}'
            f'<div><p class="asked">{escape(each.question)}</p>'
            f'<p class="prompt">{escape(each.answer or "(nothing)")}</p>'
            f'<p class="tags">{_mark(each.right)}{truth}</p></div></article>'
        )
    return f'<div class="questions">{"".join(cards)}</div>' if cards else ""


def _spelled(score: Score, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.0f} %" if score.unit == "%" and not 0 < value < 0.1 else score.spell(value)


def _scores(title: str, scores: Sequence[Score]) -> str:
    rows, blind = [], any(each.blind is not None for each in scores)
    for each in scores:
        tick = "" if each.chance is None else f'<i class="tick" style="left:{100 * each.chance:.1f}%"></i>'
        bar = f'<div class="bar"><i style="width:{100 * each.value:.1f}%"></i>{tick}</div>' if each.unit == "%" else ""
        beside = [each.chance, *([each.blind] if blind else []), each.ceiling]
        rows.append(
            f"<tr><th>{escape(each.name)}</th><td><b>{_spelled(each, each.value)}</b></td><td>{bar}</td>"
            f"{''.join(f'<td>{_spelled(each, value)}</td>' for value in beside)}<td>{each.count}</td></tr>"
        )
    titles = ["", "score", "", "chance", *(["blind"] if blind else []), "ceiling", "of"]
    head = f"<tr>{''.join(f'<th>{title}</th>' for title in titles)}</tr>"
    body = f'<table class="scores"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<h3>{escape(title)}</h3><div class="scroll">{body}</div>' if rows else ""


def _charts(charts: dict[str, tuple[Curve, ...]]) -> str:
    drawn = [
        f"<article class='card'><h3>{escape(title)}</h3>{draw_chart(curves, title)}</article>"
        for title, curves in charts.items()
        if curves
    ]
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _stages(stages: Sequence[Stage]) -> str:
    if not stages:
        return ""
    total = sum(stage.seconds for stage in stages)
    strip = "".join(
        f'<i class="s{i % 6}" style="flex-grow:{max(stage.seconds, total / 400):.2f}" title="{escape(stage.name)}"></i>'
        for i, stage in enumerate(stages)
    )
    rows = "".join(
        f'<tr><th><i class="dot s{i % 6}"></i>{escape(stage.name)}</th><td>{stage.seconds:.1f} s</td>'
        f"<td>{escape(stage.detail)}</td></tr>"
        for i, stage in enumerate(stages)
    )
    last = f"<tr class='sum'><th>all</th><td>{total:.1f} s</td><td>{total / 60:.1f} minutes</td></tr>"
    return f'<div class="strip">{strip}</div><div class="scroll"><table class="stages">{rows}{last}</table></div>'


def _facts(facts: dict[str, str]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<dl>{rows}</dl>" if rows else ""
