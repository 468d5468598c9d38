"""The benchmarks, imported as they import each other."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

NAMES = ("sampling", "peers", "ours", "figures", "speculation", "contestants", "training", "loading", "costs", "trials",
         "designs", "image_tokenizers", "sweep", "card", "faults", "picture_costs", "accelerated", "provenance",
         "tokenizer_losses", "styles")  # fmt: skip


@pytest.fixture(scope="module")
def programs(root: Path) -> Iterator[dict[str, ModuleType]]:
    """Import the benchmark as `python benchmarks/sampling.py` does."""
    sys.path.insert(0, str(root / "benchmarks"))
    yield {name: importlib.import_module(name) for name in NAMES}
    sys.path.remove(str(root / "benchmarks"))
    for name in NAMES:
        del sys.modules[name]
