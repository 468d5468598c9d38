"""Weights are mapped from their files: loading and using a model takes their bytes once."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

LOAD = """
import json, re, sys
import diffusers.models.autoencoders.vae
from pathlib import Path
from anymodal.pipeline import from_pretrained

def peak():  # getrusage would begin with the peak of the process that started this one
    return 1024 * int(re.search("VmHWM:[ \\t]+([0-9]+)", Path("/proc/self/status").read_text())[1])

before = peak()
pipe = from_pretrained(sys.argv[1], device="cpu", dtype="bfloat16", allow_pickle=True, native=False)
loaded = peak()
total = sum(float(weight.detach().sum()) for weight in pipe.model.parameters())
read = peak()
pipe.generate(["a red apple"], want="text", max_new_tokens=1)
print(json.dumps({"loaded": loaded - before, "read": read - before, "used": peak() - before}))
"""


@pytest.fixture(scope="module")
def large(toy: Any, tmp_path_factory: pytest.TempPathFactory, sound: dict[str, Path]) -> dict[str, Path]:
    """Write a model of about 200 MB in bfloat16: our own folder, and the published one with safetensors or a pickle."""
    from anymodal.model.config import TransformerConfig
    from anymodal.model.unified import AnyModal
    from anymodal.published.registry import load_published, save_published

    transformer = TransformerConfig(
        dim=1024, depth=7, num_heads=16, num_kv_heads=16, head_dim=64, hidden_dim=2816, max_seq_len=512
    )
    parts, folder = toy.parts(heads="decoupled", image_head_dim=16), tmp_path_factory.mktemp("large")
    with torch.device("meta"):
        parts.model = AnyModal(replace(parts.model.config, transformer=transformer), parts.model.vocabulary)
    noise = torch.randn(2**22).mul_(0.02).bfloat16()
    weights = {
        name: noise.repeat(each.numel() // len(noise) + 1)[: each.numel()].view(each.shape)
        for name, each in parts.model.state_dict().items()
    }
    parts.model.load_state_dict(weights, assign=True)
    parts.save(folder / "ours")
    small = load_published(sound["janus"])
    parts.image_tokenizer, parts.origin = small.image_tokenizer, small.origin
    save_published(parts, folder / "janus", "janus")
    (folder / "pickle").mkdir()
    for path in (folder / "janus").glob("*.json"):
        (folder / "pickle" / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(folder / "janus" / "model.safetensors"), folder / "pickle" / "pytorch_model.bin")
    return {kind: folder / kind for kind in ("ours", "janus", "pickle")}


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read there")
@pytest.mark.parametrize("kind", ["ours", "janus", "pickle"])
def test_loading_and_using_take_the_bytes_once(large: dict[str, Path], root: Path, kind: str) -> None:
    size = max(path.stat().st_size for path in large[kind].iterdir())
    assert size > 180e6
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOAD, str(large[kind])]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    grown = json.loads(run.stdout)
    print(kind, {name: f"{bytes_ / size:.2f} x the file" for name, bytes_ in grown.items()})
    assert grown["loaded"] < 0.4 * size, "loading maps"
    assert 0.9 * size < grown["read"] < 1.3 * size, "reading takes the file's pages"
    assert grown["used"] < 1.3 * size, "and using no copy"
