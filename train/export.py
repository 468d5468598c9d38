"""Write a model folder anew: in a published layout, a published one as ours, or with other parts.

    anymodal train export --model runs/tuned/model --layout janus --out janus-tuned
    anymodal train export --model runs/tuned/model --image_tokenizer runs/decoder/image_tokenizer --dtype bfloat16 \
        --generation defaults.json --out small

What is written in the layout "chameleon", "emu3" or "janus" loads in transformers.
"""

from pathlib import Path
from typing import Literal


def main(
    *,
    model: str,
    out: Path,
    layout: str | None = None,
    image_tokenizer: Path | None = None,
    dtype: Literal["stored", "float32", "bfloat16"] = "stored",
    generation: Path | None = None,
    allow_pickle: bool = False,
) -> None:
    """Export a model.

    Args:
        model: model folder of any layout that is known, or the name of an embedded model.
        out: new folder.
        layout: published layout to write; ours without it.
        image_tokenizer: folder of an image tokenizer with the same codes, such as one whose decoder learned on, that
            takes the place of the model's.
        dtype: type of the transformer's numbers; the image tokenizer stays as it is stored.
        generation: JSON file of sampling defaults, in the form of a model folder's generation_config.json.
        allow_pickle: also read weights that are stored as pickles; only for folders whose makers you trust.
    """
    from dataclasses import replace

    from anymodal.configuration import from_dict
    from anymodal.decoding.config import GenerationConfig
    from anymodal.pipeline import Pipeline, from_pretrained
    from anymodal.tokens.image import ImageTokenizer
    from anymodal.tokens.weights import dtype_of, read_json

    parts = from_pretrained(model, device="cpu", dtype="stored", allow_pickle=allow_pickle).parts
    if generation is not None:
        parts = replace(parts, generation=read_json(generation))
        from_dict(GenerationConfig, parts.generation, str(generation))
    if image_tokenizer is not None:
        other = ImageTokenizer.from_pretrained(image_tokenizer)
        if other.fingerprint != parts.image_tokenizer.fingerprint:
            raise ValueError(
                f"the model learned the codes of image tokenizer {parts.image_tokenizer.fingerprint}, and "
                f"{image_tokenizer} has others, {other.fingerprint}; give one whose decoder alone learned on "
                "(tokenizers image --losses.trains decoder)."
            )
        parts = replace(parts, image_tokenizer=other)
    if dtype != "stored":
        parts.model.to(dtype_of(dtype))
    Pipeline(parts).save_pretrained(out, layout=layout)
    print(f"{out}: {layout or 'anymodal'}")
