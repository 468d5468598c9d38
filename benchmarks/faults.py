"""Show how many faults were made in a run of the fault tests, and how many of them were survived.

    make faults                                                            # the long form notes its figures
    python -m pytest tests/faults --record benchmarks/faults.json          # so does the short one
    python benchmarks/faults.py --readme

A fault is survived where its test finds all as it must be: the same losses and weights, or a refusal in words. What is
not run stays as it was noted.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from figures import splice

HERE = Path(__file__).parent
ABOUT = ("machine", "date", "commit")


def tables(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Write a table for every form, machine, date and commit."""
    return "\n\n".join(text for form, tests in sorted(found.items()) for text in _form(form, tests))


def _form(form: str, tests: dict[str, dict[str, Any]]) -> Iterator[str]:
    def about(name: str) -> list[str]:
        return [tests[name][key] for key in ABOUT]

    for (machine, date, commit), group in groupby(sorted(tests, key=lambda name: (about(name), name)), about):
        names = list(group)
        made, survived = (sum(tests[name][key] for name in names) for key in ("made", "survived"))
        yield f"The {form} form: {survived:,} of {made:,} faults survived. {machine}; {date}, commit {commit}."
        lines = ["| test | faults | survived |", "| --- | ---: | ---: |"]
        for name in names:
            file, _, test = name.partition("::")
            told = f"{file.removeprefix('test_').removesuffix('.py')}: {test.removeprefix('test_')}".replace("_", " ")
            lines.append(f"| {told} | {tests[name]['made']:,} | {tests[name]['survived']:,} |")
        yield "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, and splice them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, default=HERE / "faults.json", help="what `pytest --record` has written")
    parser.add_argument("--readme", type=Path, nargs="?", const=HERE / "README.md", help="splice the tables into it")
    options = parser.parse_args(argv)
    text = tables(json.loads(options.record.read_text(encoding="utf-8")))
    print(text)
    if options.readme is not None:
        splice(options.readme, text, "faults")


if __name__ == "__main__":
    main()
