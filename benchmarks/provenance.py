"""What a figure comes from: date, commit, machine; and work folders, which belong to one set of settings."""

import json
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anymodal.scoring.machine import facts

HERE = Path(__file__).parent


def provenance() -> dict[str, Any]:
    """Return the date, the commit ("-dirty" where code differs from it) and the machine."""
    git = ["git", "-C", str(HERE)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    code = [*git, "diff", "--quiet", "HEAD", "--", ":(top)*.py", ":(top)*.c"]
    dirty = "-dirty" * (subprocess.run(code, capture_output=True, check=False).returncode == 1)
    return {
        "date": datetime.now(UTC).date().isoformat(), "commit": commit.strip() + dirty or "unknown", "machine": facts(),
    }  # fmt: skip


def claim(work: Path, settings: Mapping[str, Any]) -> None:
    """Begin a work folder for these settings, or go on in one that was begun for them.

    Raises:
        ValueError: it was begun for others, whose results would be taken for these.
    """
    path = work / "settings.json"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    begun = json.loads(path.read_text(encoding="utf-8"))
    other = [name for name in {**begun, **settings} if begun.get(name) != settings.get(name)]
    if other:
        told = ", ".join(f"{name} {begun.get(name)} is not {settings.get(name)}" for name in other)
        raise ValueError(f"{work} must have been begun for these settings, but {told}; take another folder (--work).")
