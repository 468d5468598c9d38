"""Grow a Llama or Qwen text model into an untrained unified one, to be trained by `anymodal train finetune`.

    anymodal train grow --backbone models/Qwen3-0.6B --image_tokenizer runs/tokenizer/image_tokenizer --out runs/grown

Image codes, special tokens, heads and an understanding path are added; what the text model learned stays.
"""

from pathlib import Path

from anymodal.model.config import AnyModalConfig, UnderstandingConfig


def main(
    *,
    backbone: Path,
    image_tokenizer: Path,
    out: Path,
    vision: Path | None = None,
    size: int = 64,
    max_seq_len: int | None = None,
    model: AnyModalConfig = AnyModalConfig(heads="decoupled", understanding=UnderstandingConfig()),
    seed: int = 0,
    allow_pickle: bool = False,
) -> None:
    """Grow a text model.

    Args:
        backbone: folder of a text model in transformers' layout.
        image_tokenizer: folder of the image tokenizer, or of a model of any known layout, or the name of an embedded
            model, whose own is taken.
        out: new model folder.
        vision: folder of a SigLIP vision tower to look with; an untrained one without it.
        size: side of the pictures that it will draw, in pixels.
        max_seq_len: longest document; the text model's without it.
        model: heads and understanding path; the transformer's shape is the text model's.
        seed: of what is added.
        allow_pickle: also read weights that are stored as pickles; only for folders whose makers you trust.
    """
    from dataclasses import replace

    import torch

    from anymodal.published.backbone import grow
    from anymodal.published.layout import PublishedFolder
    from anymodal.published.registry import load_image_tokenizer
    from anymodal.published.siglip import read_config, read_tower

    torch.manual_seed(seed)
    image = load_image_tokenizer(image_tokenizer, allow_pickle=allow_pickle)
    side = size // image.config.down_sampling
    folder = PublishedFolder.open(backbone, allow_pickle=allow_pickle)
    tower = None if vision is None else PublishedFolder.open(vision, allow_pickle=allow_pickle)
    if tower is not None:
        merge = 1 if model.understanding is None else model.understanding.merge
        model = replace(model, understanding=read_config(tower.config, merge=merge))
    parts = grow(folder, image, model, grid=(side, side), max_seq_len=max_seq_len)
    if tower is not None and parts.model.understanding is not None:
        read_tower(tower, parts.model.understanding)
    parts.save(out)
    print(f"{out}: grown from {backbone}; train it with `anymodal train finetune --model {out}`")
