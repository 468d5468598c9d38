"""Load a Janus of 1.3 B parameters in bfloat16: peak memory and time beside a plain read of the file; and draw with it.

    python benchmarks/published.py --folder /tmp/janus-1.3b
    python benchmarks/published.py --folder /tmp/janus-1.3b --draw int8 bfloat16 float32

The folder is written once, with random weights. A larger shape is counted, not loaded.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from anymodal.model.unified import AnyModal
from anymodal.published import janus
from anymodal.published.layout import no_memory
from anymodal.published.vqgan import janus_names, read_janus_config
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary

GIB = 2**30
TOKENS = ("bos", "eos", "pad", "begin_of_image", "end_of_image", "image_placeholder")


def config_of(dim: int, depth: int, heads: int, hidden: int) -> dict[str, Any]:
    """Return the config.json of a Janus; vision encoder and image tokenizer are the published ones."""
    text = {
        "model_type": "llama", "vocab_size": 102400, "hidden_size": dim, "intermediate_size": hidden,
        "num_hidden_layers": depth, "num_attention_heads": heads, "max_position_embeddings": 16384,
    }  # fmt: skip
    return {
        "model_type": "janus",
        "tie_word_embeddings": False,
        "text_config": text,
        "vision_config": {"projection_dim": dim},
        "vq_config": {"projection_dim": dim, "image_token_embed_dim": dim},
    }


def shapes(config: dict[str, Any]) -> dict[str, torch.Size]:
    """Return the shape of every tensor of the layout."""
    ours = janus.read_config(config, {})
    image_config = read_janus_config(config["vq_config"])
    vocabulary = Vocabulary.build(text_size=102400, specials={"boi": 3}, codebook_size=16384)
    with no_memory():
        model, image = AnyModal(ours, vocabulary), ImageTokenizer(image_config)
    written = janus.names(ours).write(model.state_dict())
    drawn = janus_names(image_config).write(image.state_dict())
    return {
        name: each.shape for name, each in {**written, **{f"model.vqmodel.{k}": v for k, v in drawn.items()}}.items()
    }


def write(folder: Path) -> None:
    """Write the folder with random weights."""
    config = config_of(dim=2048, depth=24, heads=16, hidden=5632)
    folder.mkdir(parents=True)
    block = torch.randn(2**24, dtype=torch.float32).mul_(0.02).bfloat16()
    tensors = {name: block.repeat(shape.numel() // len(block) + 1)[: shape.numel()].view(shape).clone()
               for name, shape in shapes(config).items()}  # fmt: skip
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "pad", "boi_token": "begin_of_image",
             "eoi_token": "end_of_image", "image_token": "image_placeholder"}  # fmt: skip
    TextTokenizer.learn(["a red apple"], vocab_size=300, specials=TOKENS).save(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({key: f"<{name}>" for key, name in named.items()}))


def load(folder: Path) -> dict[str, float]:
    """Load the folder, compute one token, and tell what it cost."""
    import anymodal  # noqa: PLC0415  (its import is not part of the time)
    import anymodal.pipeline  # noqa: PLC0415

    ImageTokenizer(read_janus_config({"base_channels": 32}))  # so that diffusers' import is none either
    before = peak_bytes()
    start = time.perf_counter()
    pipe = anymodal.from_pretrained(folder, device="cpu", dtype="stored")
    seconds = time.perf_counter() - start
    loaded = peak_bytes()
    pipe.generate(["a red apple"], want="text", max_new_tokens=1)
    return {"before": before, "loaded": loaded, "peak": peak_bytes(), "seconds": seconds}


def draw(folder: Path, dtype: str) -> str:
    """Draw one picture of 384 x 384 pixels, 576 codes with a guidance pair, and tell what it cost."""
    import anymodal  # noqa: PLC0415

    start = time.perf_counter()
    pipe = anymodal.from_pretrained(folder, device="cpu", dtype=dtype)
    loaded = time.perf_counter()
    (image,) = pipe.generate_image("a red apple", guidance_scale=5.0)
    seconds = time.perf_counter() - loaded
    usage, peak = pipe.usage, peak_bytes() / GIB
    return (
        f"{dtype}: {image.width} x {image.height} pixels in {seconds:.1f} s, of which {usage.seconds:.1f} s for "
        f"{usage.tokens} ids ({usage.tokens_per_second:.1f} a second) and {seconds - usage.seconds:.1f} s for pixels; "
        f"ready in {loaded - start:.1f} s, peak {peak:.2f} GiB, {torch.get_num_threads()} thread(s)"
    )


def peak_bytes() -> int:
    """Return the most memory that this process had resident; getrusage would tell that of the parent too."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def read(path: Path) -> float:
    """Return the seconds of a plain read of a file."""
    buffer = bytearray(2**24)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only_load", action="store_true")
    parser.add_argument("--draw", nargs="+", choices=["float32", "bfloat16", "int8"], help="draw, with these weights")
    options = parser.parse_args()
    if options.only_load:
        print(json.dumps(load(options.folder)))
        return
    if not options.folder.exists():
        write(options.folder)
    for dtype in options.draw or ():
        print(draw(options.folder, dtype), flush=True)
    if options.draw:
        return
    weights = options.folder / "model.safetensors"
    size = weights.stat().st_size
    plain = min(read(weights) for _ in range(3))
    command = [sys.executable, __file__, "--folder", str(options.folder), "--only_load"]
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3)]
    seconds, peak = min(run["seconds"] for run in runs), max(run["peak"] for run in runs)
    print(f"weights {size / GIB:.2f} GiB, plain read {plain:.2f} s")
    print(
        f"load {seconds:.2f} s ({seconds / plain:.2f} x a plain read), {runs[0]['loaded'] / GIB:.2f} GiB resident then"
    )
    print(
        f"first token: peak {peak / GIB:.2f} GiB, {peak / size:.2f} x the weights, interpreter and libraries included"
    )
    large = sum(shape.numel() for shape in shapes(config_of(dim=4096, depth=30, heads=32, hidden=11008)).values())
    print(f"7B shape, counted: {large / 1e9:.2f} B numbers, {2 * large / GIB:.2f} GiB in bfloat16")


if __name__ == "__main__":
    main()
