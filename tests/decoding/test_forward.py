"""A compiled step gives what a plain one gives."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anymodal.decoding.config import EngineConfig
from anymodal.decoding.engine import Engine
from anymodal.decoding.forward import BUCKET, Forward
from anymodal.model.cache import KVCache


def test_compiled_ids_are_those_of_plain_steps(toy: Any, tmp_path: Path) -> None:
    """In a process of its own: the checks of shapes that tests switch on do not compile."""
    toy.parts(heads="decoupled").save(tmp_path / "model")
    script = (
        "import sys, anymodal\n"
        "from anymodal.decoding.config import EngineConfig\n"
        "drawn = []\n"
        "for compiled in (False, True):\n"
        "    engine = EngineConfig(compile=compiled)\n"
        "    pipe = anymodal.from_pretrained(sys.argv[1], dtype='float64', engine=engine)\n"
        "    images = pipe.generate_image(['a dog', 'a cat'], guidance_scale=2.0)\n"
        "    drawn.append([image.tobytes() for image in images])\n"
        "assert drawn[0] == drawn[1]\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "model")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_compiled_steps_see_buckets_of_the_cache(make_setup: Callable[..., Any]) -> None:
    engine = Engine(make_setup().model.eval(), EngineConfig(compile=True))
    assert engine.forward.bucket == BUCKET


def test_rows_out_of_use_change_nothing(make_setup: Callable[..., Any]) -> None:
    model = make_setup().model.eval()
    caches = [
        KVCache(model.config.transformer, num_rows=rows, capacity=8, dtype=torch.float64, bucket=bucket)
        for rows, bucket in ((2, 0), (5, 8))
    ]
    plain, fixed = Forward(model, EngineConfig()), Forward(model, EngineConfig(batch_invariant=True))
    for ids in (torch.tensor([3, 9]), torch.tensor([7, 1])):
        with torch.inference_mode():
            expected, got = (each(ids, cache, 2) for each, cache in zip((plain, fixed), caches, strict=True))
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    assert [caches[1].filled(row) for row in range(5)] == [2, 2, 0, 0, 0]
