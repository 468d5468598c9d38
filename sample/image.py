"""Draw pictures from prompts.

    anymodal sample image "a rabbit"
    anymodal sample image "a red apple" "two dogs" --model runs/mine/model --num_images 4 --seed 7 --out apples

Pictures are written as OUT/000.png, OUT/001.png, ... beside OUT/sheet.png, a contact sheet of all of them.
"""

import sys
from pathlib import Path

from anymodal.decoding.config import EngineConfig, Native


def main(
    prompts: list[str],
    *,
    model: str = "emoji",
    out: Path = Path("pictures"),
    num_images: int = 1,
    best_of: int | None = None,
    negative_prompt: str | None = None,
    guidance_scale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    native: Native = "auto",
    engine: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
) -> None:
    """Draw every prompt.

    Args:
        prompts: what to draw.
        model: model folder, or the name of an embedded model.
        out: folder of the pictures.
        num_images: pictures a prompt; picture i has seed + i.
        best_of: drawings from which each picture is chosen, by what the model itself reads in them.
        negative_prompt: what guidance leads away from.
        guidance_scale: weight of the prompt; the model's default without it.
        guidance_interval: from and up to which share of a picture guidance acts; all of it without.
        temperature: of the codes; 0 takes the most likely ones.
        top_k: keep the k most likely codes; 0 keeps all.
        top_p: keep the fewest codes whose probability reaches p.
        height: of the pictures, in pixels.
        width: of the pictures, in pixels.
        seed: of the first picture of every prompt.
        device: cpu, cuda, ... or auto.
        dtype: float32, bfloat16 or int8 (of the weights, on a CPU), float64, stored or auto.
        allow_pickle: also read weights that are stored as pickles; only for folders whose makers you trust.
        native: sample with a kernel that the system's C compiler builds, once; auto: where it can, on a CPU.
        engine: how the sampler works.
    """
    from anymodal.data.sheet import save_pictures
    from anymodal.pipeline import from_pretrained

    pipe = from_pretrained(model, device=device, dtype=dtype, allow_pickle=allow_pickle, native=native, engine=engine)
    images = pipe.generate_image(
        prompts, num_images=num_images, best_of=best_of, negative_prompt=negative_prompt,
        guidance_scale=guidance_scale, guidance_interval=guidance_interval, temperature=temperature, top_k=top_k,
        top_p=top_p, height=height, width=width, seed=seed,
    )  # fmt: skip
    captions = [prompt for prompt in prompts for _ in range(num_images)]
    paths = save_pictures(images, out, captions)
    for path, caption in zip(paths, [*captions, "all of them"], strict=True):
        print(f"{path}: {caption}")
    sys.stderr.write(pipe.usage.report("drawing"))
