"""Model folders to break, and a process that loads what is left of them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

ROLES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "boi_token": "<boi>", "eoi_token": "<eoi>"}

ROOM = 256 * 2**20
"""Bytes that refusing a folder may take; a bomb wants gigabytes."""


@dataclass(frozen=True)
class Outcome:
    """What came of loading a folder: the error's class and words, None where it was loaded, and bytes of memory."""

    error: str | None
    message: str
    grown: int


@pytest.fixture(scope="session")
def load(root: Path) -> Iterator[Callable[..., Outcome]]:
    """Load a folder as a user would, in a process of its own."""
    command = [sys.executable, str(root / "tests" / "faults" / "loader.py")]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    loader = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    )
    assert loader.stdin is not None and loader.stdout is not None, "both are pipes"
    ends = loader.stdin, loader.stdout

    def ask(folder: Path, *, allow_pickle: bool = False, **environment: str) -> Outcome:
        request = {"folder": str(folder), "allow_pickle": allow_pickle, "environment": environment}
        ends[0].write(json.dumps(request) + "\n")
        ends[0].flush()
        return Outcome(**json.loads(ends[1].readline()))

    yield ask
    loader.kill()
    loader.wait()
    for end in ends:
        end.close()


@pytest.fixture(scope="session")
def sound(load: Any, toy: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a sound folder of our own, and one of a published layout, while `load` starts."""
    from anymodal.published.registry import save_published
    from anymodal.tokens.image import ImageTokenizer
    from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig

    folder = tmp_path_factory.mktemp("sound")
    parts = toy.parts(heads="decoupled", image_head_dim=16)
    parts.save(folder / "ours")
    torch.manual_seed(0)
    quantizer = QuantizerConfig(kind="l2-vq", codebook_size=16, codebook_dim=8, codebook_update="gradient")
    image = ImageTokenizerConfig(
        architecture="diffusers", channels=(32, 32, 32), blocks=1, latent_channels=8, attention_stages=(2,),
        quantizer=quantizer,
    )  # fmt: skip
    parts.image_tokenizer = ImageTokenizer(image).eval()
    save_published(parts, folder / "janus", "janus")
    (folder / "janus" / "tokenizer_config.json").write_text(json.dumps({**ROLES, "image_token": "<look>"}))
    return {kind: folder / kind for kind in ("ours", "janus")}


@pytest.fixture(params=["ours", "janus"])
def folder(sound: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Copy a sound folder, to be broken."""
    return Path(shutil.copytree(sound[request.param], tmp_path / "model"))


@pytest.fixture
def refuse(load: Callable[..., Outcome]) -> Callable[..., None]:
    """Check that a folder is refused with words, without running code, and without taking memory."""

    def check(folder: Path, message: str, **how: Any) -> None:
        outcome = load(folder, **how)
        assert outcome.error == "ValueError", outcome
        assert message in outcome.message, outcome
        assert outcome.grown < ROOM, outcome
        assert not list(folder.parent.rglob("owned")), "code was run"

    return check
