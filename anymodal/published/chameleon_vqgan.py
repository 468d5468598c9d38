"""The VQGAN of Chameleon: transformers holds the part that reads pictures, a decoder beside it draws them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from anymodal.published.layout import PublishedFolder, no_memory
from anymodal.published.vqgan import read_chameleon_config, taming_names
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.picture_config import PictureFit
from anymodal.tokens.tensors import TensorFiles

RESCALE = 0.0078
"""What a byte is multiplied by in transformers' Chameleon; the original has 1 / 127.5."""

CODEBOOK = "quantize.embedding.weight"
DECODERS = ("vqgan.safetensors", "tokenizer/vqgan.safetensors", "vqgan.ckpt", "tokenizer/vqgan.ckpt")
"""Where the whole VQGAN may stand in a folder: transformers has the part that reads pictures alone."""


class _MissingDecoder(nn.Module):
    """Say which file lacks when a picture is drawn."""

    def __init__(self, advice: str) -> None:
        super().__init__()
        self.advice = advice

    def forward(self, *_: Any) -> Tensor:
        raise ValueError(self.advice)


def load_image_tokenizer(folder: PublishedFolder, tensors: Mapping[str, Tensor]) -> ImageTokenizer:
    """Read the tokenizer, with its decoder where a whole VQGAN stands in the folder.

    Raises:
        ValueError: the tensors do not fit the config, or the VQGAN is that of another model.
    """
    file = next((folder.path / name for name in DECODERS if (folder.path / name).is_file()), None)
    readable = file is not None and (file.suffix == ".safetensors" or folder.allow_pickle)
    known = {name.removeprefix("model.vqmodel."): name for name in tensors if name.startswith("model.vqmodel.")}
    stored = {short: tensors[name] for short, name in known.items()}
    if file is not None and readable:
        stored |= _decoder(file, stored, allow_pickle=folder.allow_pickle)
    theirs = read_chameleon_config(folder.config.get("vq_config") or {}, has_decoder=readable)
    config = replace(theirs, pictures=_fit(folder.image_processor()))
    with no_memory():
        image = ImageTokenizer(config)
    taming_names(config).read(stored, image, str(folder.path))
    if not readable:
        image.decoder = _MissingDecoder(_advice(folder.path, file))
    return image


def save_decoder(image: ImageTokenizer, folder: Path) -> None:
    """Write the whole VQGAN beside the weights, where `load_image_tokenizer` looks for its decoder."""
    whole = taming_names(image.config).write(image.state_dict())
    save_file({name: tensor.cpu() for name, tensor in whole.items()}, folder / DECODERS[0])


def _fit(images: Mapping[str, Any]) -> PictureFit:
    """Return how pictures are read: the short side to size, the long one cut."""
    scale = float(images.get("rescale_factor", RESCALE)) / float((images.get("image_std") or (1.0,))[0])
    return PictureFit(kind="resize-crop", resample="lanczos", scale=scale)


def _decoder(file: Path, encoder: Mapping[str, Tensor], *, allow_pickle: bool) -> dict[str, Tensor]:
    """Return the decoder's tensors of a whole VQGAN, which must share its codebook with the `encoder`'s."""
    whole = TensorFiles.of_file(file, allow_pickle=allow_pickle)
    if CODEBOOK in encoder:
        ours = encoder[CODEBOOK].float()
        theirs = whole[CODEBOOK].float() if CODEBOOK in whole else torch.empty(0)
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=0.01, atol=1e-6):  # bfloat16 keeps 0.4 %
            raise ValueError(
                f"{file} must hold the codebook of this model, {list(ours.shape)}, got another one, "
                f"{list(theirs.shape)}; it is the image tokenizer of another model: take it away or exchange it."
            )
    return {name: whole[name] for name in whole if name.startswith("decoder.")}


def _advice(folder: Path, file: Path | None) -> str:
    if file is not None:
        return (
            f"the decoder that draws pictures is in {file}, a pickle, which can run code, and was not read: convert it "
            "to safetensors, or, if you trust who made it, say allow_pickle=True (`--allow_pickle true`)."
        )
    return (
        f"{folder} has no decoder of pictures, as transformers' Chameleon has none: add the original release's "
        f"tokenizer/vqgan.ckpt (then say allow_pickle=True), or its tensors as {DECODERS[0]}."
    )
