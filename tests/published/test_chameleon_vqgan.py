from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anymodal.published.chameleon_vqgan import DECODERS, RESCALE, load_image_tokenizer, save_decoder
from anymodal.published.layout import PublishedFolder
from anymodal.published.vqgan import read_chameleon_config, taming_names, without_decoder
from anymodal.tokens.image import ImageTokenizer

VQ = {
    "embed_dim": 8, "num_embeddings": 40, "latent_channels": 16, "resolution": 16, "base_channels": 32,
    "channel_multiplier": [1, 2], "num_res_blocks": 1,
}  # fmt: skip


@pytest.fixture
def whole() -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(read_chameleon_config(VQ, has_decoder=True)).eval()


def written(image: ImageTokenizer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in taming_names(image.config).write(image.state_dict()).items()}


def read_half(image: ImageTokenizer, path: Path, dtype: torch.dtype | None = None, **how: Any) -> ImageTokenizer:
    """Read the tokenizer of a model folder, in which transformers left the encoder alone."""
    half = taming_names(image.config).write(without_decoder(image.state_dict()))
    tensors: Mapping[str, Tensor] = {f"model.vqmodel.{name}": tensor.to(dtype) for name, tensor in half.items()}
    return load_image_tokenizer(PublishedFolder(path, {"vq_config": VQ}, **how), {**tensors, "lm_head.weight": codes()})


def codes() -> Tensor:
    return torch.arange(32).view(1, 4, 8)


@pytest.mark.parametrize("name", DECODERS)
def test_it_draws_with_the_decoder_beside_it(tmp_path: Path, whole: ImageTokenizer, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    if name.endswith(".ckpt"):
        torch.save({"state_dict": {**written(whole), "loss.logvar": torch.zeros(1)}}, tmp_path / name)
    else:
        save_file(written(whole), tmp_path / name)
    read = read_half(whole, tmp_path, allow_pickle=True)
    torch.testing.assert_close(read.decode(codes()), whole.decode(codes()), atol=1e-5, rtol=0)
    assert replace(read.config, pictures=whole.config.pictures) == whole.config
    assert read.config.pictures.scale == RESCALE
    (tmp_path / "out").mkdir()
    save_decoder(read, tmp_path / "out")
    again = load_file(tmp_path / "out" / DECODERS[0])
    assert again.keys() == written(whole).keys()
    assert all(torch.equal(again[each], tensor) for each, tensor in written(whole).items())


def test_an_encoder_in_bfloat16_has_the_same_decoder(tmp_path: Path, whole: ImageTokenizer) -> None:
    save_file(written(whole), tmp_path / DECODERS[0])
    assert read_half(whole, tmp_path, torch.bfloat16).config.has_decoder


def test_without_a_decoder_it_reads_and_says_what_to_add(tmp_path: Path, whole: ImageTokenizer) -> None:
    read = read_half(whole, tmp_path)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(read.encode(pixels), whole.encode(pixels))
    assert read.config.has_decoder is False
    with pytest.raises(ValueError, match=r"has no decoder of pictures.*add the original release's tokenizer"):
        read.decode(codes())
    torch.save({"state_dict": written(whole)}, tmp_path / "vqgan.ckpt")
    with pytest.raises(ValueError, match=r"vqgan.ckpt, a pickle, .* say allow_pickle=True"):
        read_half(whole, tmp_path).decode(codes())


def test_the_decoder_of_another_model_is_refused(tmp_path: Path, whole: ImageTokenizer) -> None:
    other = {**written(whole), "quantize.embedding.weight": torch.randn(40, 8)}
    save_file(other, tmp_path / DECODERS[0])
    with pytest.raises(ValueError, match="the codebook of this model.*is the image tokenizer of another model"):
        read_half(whole, tmp_path)
    encoder = {name: tensor for name, tensor in written(whole).items() if not name.startswith("decoder.")}
    save_file(encoder, tmp_path / DECODERS[0])
    with pytest.raises(ValueError, match=r"missing tensors \['decoder"):
        read_half(whole, tmp_path)
