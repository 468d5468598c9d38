"""Write the scores of the embedded model into its card and the README, as `anymodal sample score` found them.

    anymodal sample score --model emoji --bench all --out benchmarks/emoji.json
    python benchmarks/card.py

No figure is typed: the card has every table, the README the rows that `HEADLINES` names.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from figures import splice

from anymodal.scoring.report import Score

ROOT = Path(__file__).parents[1]
CARD = ROOT / "anymodal" / "models" / "emoji" / "README.md"
BY_PIXELS = "nearest concept by pixels of all"
SCENES, ANSWERS = "scenes, held-out combinations", "questions about held-out scenes"
HEADLINES = {
    "one of the 100 things that its scenes are made of (memorised), nearest of all concepts by pixels": (
        "names, of the scenes", BY_PIXELS,
    ),
    "any of the names that it saw, hardly learned": ("names, trained", BY_PIXELS),
    "a name that it never saw": ("names, never trained", BY_PIXELS),
    "a scene of a combination never trained, all of it right": (SCENES, "every kind"),
    "- of one object": (SCENES, "one"),
    "- of one object on a coloured tile": (SCENES, "colours"),
    "- of two objects": (SCENES, "two"),
    "- of several alike": (SCENES, "counting"),
    "- of two in named places": (SCENES, "position"),
    "- of two on coloured tiles": (SCENES, "binding"),
    "a question about such a scene": (ANSWERS, "all"),
    '- "what is it"': (ANSWERS, "what"),
    "- colours": (ANSWERS, "colour"),
    "- how many": (ANSWERS, "count"),
    "- where": (ANSWERS, "where"),
    "- yes or no": (ANSWERS, "yes-no"),
}  # fmt: skip


def tables(found: dict[str, Any], made_with: dict[str, Any]) -> str:
    """Write every table as Markdown, under what they were made with."""
    settings = ", ".join(f"{name} {value}" for name, value in made_with["settings"].items() if value is not None)
    parts = [
        f"`anymodal sample score --model emoji`: {settings}; weights {made_with['model']['weights']}; "
        f"{made_with['machine']['Processor']}; {made_with['made'][:10]}."
    ]
    for title, rows in found["scores"].items():
        parts.append("\n".join([f"**{title}**", "", *_rows([Score(**row) for row in rows])]))
    return "\n\n".join(parts)


def headlines(found: dict[str, Any]) -> str:
    """Write the rows that the README shows.

    Raises:
        ValueError: the scores have no such row.
    """
    columns = ("value", "chance", "blind", "ceiling")
    lines = ["| the embedded model | right | chance | blind | ceiling |", f"| --- |{' ---: |' * len(columns)}"]
    for label, (title, name) in HEADLINES.items():
        rows = [Score(**row) for row in found["scores"].get(title, [])]
        chosen = [row for row in rows if row.name.startswith(name)]
        if not chosen:
            raise ValueError(f"the scores must hold {name!r} of {title!r} for the README; score with --bench all.")
        lines.append(_line(label, chosen[0], columns))
    return "\n".join(lines)


def _rows(scores: Sequence[Score]) -> Iterator[str]:
    beside = [
        name for name in ("chance", "blind", "ceiling") if any(getattr(each, name) is not None for each in scores)
    ]
    columns = ["value", *beside]
    yield f"| | {' | '.join(['of', 'model', *beside])} |"
    yield f"| --- |{' ---: |' * (len(columns) + 1)}"
    for each in scores:
        yield _line(f"{each.name} | {each.count}", each, columns)


def _line(label: str, score: Score, columns: Sequence[str]) -> str:
    values = [getattr(score, name) for name in columns]
    return f"| {label} | {' | '.join('' if value is None else score.spell(value) for value in values)} |"


def main(words: Sequence[str] | None = None) -> None:
    """Write both pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, default=ROOT / "benchmarks" / "emoji.json")
    parser.add_argument("--card", type=Path, default=CARD)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    given = parser.parse_args(words)
    found = json.loads(given.scores.read_text(encoding="utf-8"))
    made_with = json.loads(given.scores.with_suffix(".manifest.json").read_text(encoding="utf-8"))
    splice(given.card, tables(found, made_with), "scores")
    splice(given.readme, headlines(found), "headlines")


if __name__ == "__main__":
    main()
