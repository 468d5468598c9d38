"""What a stopped run left behind: kept where the same settings made it, refused where others did."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anymodal.pipeline import Pipeline
from anymodal.tokens.weights import read_json, write_json

NAME = "made_with.json"
PROBE = 64  # numbers of a tensor that stand for it


def made_with(pipe: Pipeline, **settings: Any) -> dict[str, Any]:
    """Return what results depend on: the model, its sampling defaults, and these settings."""
    seen = hashlib.sha256(f"{pipe.image_tokenizer.fingerprint} {pipe.text_tokenizer.fingerprint}".encode())
    for name, tensor in pipe.model.named_parameters():
        probe = tensor.detach().reshape(-1)[:PROBE].float().cpu().numpy()
        seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + probe.tobytes())
    return {"model": seen.hexdigest()[:16], "generation": json.loads(json.dumps(asdict(pipe.generation))), **settings}


def claim(folder: Path, made: Mapping[str, Any]) -> None:
    """Say in `folder` what its results are made with.

    Raises:
        ValueError: it holds results that were made with something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    if not path.is_file():
        write_json(path, made)
        return
    before = read_json(path)
    if changed := sorted(key for key in {*before, *made} if before.get(key) != made.get(key)):
        raise ValueError(
            f"{folder} holds results made with {changed[0]} {before.get(changed[0])!r}, this run has "
            f"{made.get(changed[0])!r}; take another folder, or delete that one."
        )
