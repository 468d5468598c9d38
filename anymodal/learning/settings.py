"""What a run was begun with, kept beside it, so that one folder never mixes two runs in silence."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from anymodal.configuration import to_dict
from anymodal.learning.checkpoints import step_of
from anymodal.learning.distributed import is_first

log = logging.getLogger(__name__)

NAME = "run.yaml"
FIRM = (
    *("parts", "stage.trains", "stage.rates", "optimizer.name", "losses.adversarial_weight", "run.strategy"),
)  # what shapes checkpoints
FREE = (
    *("run.steps", "run.log_every", "run.sample_every", "run.checkpoint_every", "run.devices", "run.accumulate"),
    *("run.checkpoint_activations", "run.compile", "run.peer_timeout_s"),
    *("data.num_workers", "data.worker_timeout_s", "data.cache_folder", "data.index_folder"),
)  # what leaves the steps as they are


def keep_settings(out: Path, sections: Mapping[str, Any]) -> None:
    """Write the settings of a run into its folder, and tell what a run that goes on changes.

    `sections` holds "run" and what else the run is made of; "parts" what its weights belong to.

    Raises:
        ValueError: the folder holds a run of another model, or a complete one that was made otherwise.
    """
    path, settings = out / NAME, to_dict(sections)
    done = max((step_of(each) for each in (out / "checkpoints").glob("step-*.ckpt")), default=0)
    before = yaml.safe_load(path.read_text(encoding="utf-8")) if done and path.is_file() else settings
    changed = {name: f"{name} was {old}, now is {new}" for name, old, new in _differences(before, settings)}
    firm = [text for name, text in changed.items() if _under(name, FIRM)]
    if firm:
        raise ValueError(f"{out} holds another run: {'; '.join(firm)}; choose another --out, or the settings it had.")
    others = [text for name, text in changed.items() if not _under(name, FREE)]
    steps = settings["run"]["steps"]
    if done > steps or (done == steps and others):
        why = "; ".join(others) or f"run.steps is {steps}"
        raise ValueError(
            f"{out} has taken its {done} steps already, but {why}; choose another --out, or more run.steps."
        )
    if is_first():
        if others:
            log.warning("this run goes on from step %d with other settings: %s", done, "; ".join(others))
        if done == steps:
            log.info("all %d steps were taken before; more run.steps go on from there", done)
        _write(path, yaml.safe_dump(settings, sort_keys=False))


def _differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted names under which two settings differ, with both values."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        if before != now:
            yield name, before, now
        return
    for key in dict.fromkeys((*before, *now)):
        yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)


def _under(name: str, names: tuple[str, ...]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in names)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
