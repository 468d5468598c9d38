"""Write a model folder in a published layout, or a published one as a folder of ours.

    anymodal train export --model runs/tuned/model --layout janus --out janus-tuned

What is written in the layout "chameleon", "emu3" or "janus" loads in transformers.
"""

from pathlib import Path


def main(*, model: str, out: Path, layout: str | None = None, allow_pickle: bool = False) -> None:
    """Export a model.

    Args:
        model: model folder of any layout that is known, or the name of an embedded model.
        out: new folder.
        layout: published layout to write; ours without it.
        allow_pickle: also read weights that are stored as pickles; only for folders whose makers you trust.
    """
    from anymodal.pipeline import from_pretrained

    pipe = from_pretrained(model, device="cpu", dtype="stored", allow_pickle=allow_pickle)
    pipe.save_pretrained(out, layout=layout)
    print(f"{out}: {layout or 'anymodal'}")
