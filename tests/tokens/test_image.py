import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig

QUANTIZERS = {
    "vq": QuantizerConfig(kind="vq", codebook_size=32, codebook_dim=4),
    "l2-vq": QuantizerConfig(kind="l2-vq", codebook_size=32, codebook_dim=4),
    "fsq": QuantizerConfig(kind="fsq", codebook_size=40, levels=(8, 5)),
    "lfq": QuantizerConfig(kind="lfq", codebook_size=32, codebook_dim=5),
    "simvq": QuantizerConfig(kind="simvq", codebook_size=32, codebook_dim=4),
    "learned vq": QuantizerConfig(kind="vq", codebook_size=32, codebook_dim=4, codebook_update="gradient"),
    "learned l2-vq": QuantizerConfig(kind="l2-vq", codebook_size=32, codebook_dim=4, codebook_update="gradient"),
}


def make(kind: str = "fsq", **changes: Any) -> ImageTokenizer:
    torch.manual_seed(0)
    config: dict[str, Any] = {"channels": (8, 16), "norm_groups": 4, "blocks": 1, "latent_channels": 8, "patch": 2}
    return ImageTokenizer(ImageTokenizerConfig(**{**config, "quantizer": QUANTIZERS[kind], **changes})).eval()


@pytest.mark.parametrize("architecture", ["unshuffle", "diffusers"])
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_codes_and_pixels_of_rectangles(kind: str, architecture: str) -> None:
    tokenizer = make(kind, architecture=architecture)
    factor = tokenizer.config.down_sampling
    assert factor == (4 if architecture == "unshuffle" else 2)
    pixels = torch.rand(2, 3, 8 * factor, 3 * factor) * 2 - 1
    codes = tokenizer.encode(pixels)
    assert (codes.shape, codes.dtype) == ((2, 8, 3), torch.int64)
    assert int(codes.min()) >= 0
    assert int(codes.max()) < tokenizer.codebook_size
    decoded = tokenizer.decode(codes)
    assert decoded.shape == pixels.shape
    assert float(decoded.abs().max()) <= 1
    result = tokenizer(pixels)
    assert torch.equal(result.codes, codes)
    torch.testing.assert_close(result.pixels.clamp(-1, 1), decoded, atol=1e-5, rtol=1e-5)
    assert torch.equal(tokenizer.encode(pixels[1:])[0], codes[1])


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_every_weight_learns(kind: str) -> None:
    tokenizer = make(kind).train()
    for name, parameter in tokenizer.named_parameters():  # residual branches begin as nothing
        if "conv_2" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    result = tokenizer(torch.rand(2, 3, 16, 16) * 2 - 1)
    (result.pixels.square().mean() + result.codebook_loss).backward()
    still = [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_encoding_leaves_a_codebook_in_training_alone() -> None:
    tokenizer = make("l2-vq").train()
    before = tokenizer.fingerprint
    tokenizer.encode(torch.rand(2, 3, 16, 16))
    assert tokenizer.fingerprint == before
    assert tokenizer.quantizer.training
    tokenizer(torch.rand(2, 3, 16, 16))
    assert tokenizer.fingerprint != before


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_folder_keeps_every_bit(tmp_path: Path, kind: str) -> None:
    tokenizer = make(kind)
    tokenizer.save_pretrained(tmp_path)
    again = ImageTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.config == tokenizer.config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    pixels = torch.rand(1, 3, 16, 8)
    assert torch.equal(again.encode(pixels), tokenizer.encode(pixels))
    with torch.no_grad():
        next(again.parameters()).view(-1)[0] += 1e-6
    assert again.fingerprint != tokenizer.fingerprint


def test_attention_stands_in_the_stages_that_ask_for_it() -> None:
    options: dict[str, Any] = {"architecture": "diffusers", "channels": (8, 8, 16), "blocks": 2}
    plain, attentive = make(**options), make(**options, attention_stages=(0, 2))
    added = attentive.state_dict().keys() - plain.state_dict().keys()
    assert {name.partition(".attentions")[0] for name in added} == {
        "encoder.down_blocks.0", "encoder.down_blocks.2", "decoder.up_blocks.2", "decoder.up_blocks.0",
    }  # fmt: skip
    pixels = torch.rand(1, 3, 8, 4)
    assert attentive.decode(attentive.encode(pixels)).shape == pixels.shape


def test_without_a_decoder_pictures_are_read_alone(tmp_path: Path) -> None:
    tokenizer, reader = make(architecture="diffusers"), make(architecture="diffusers", has_decoder=False)
    state = tokenizer.state_dict()
    reader.load_state_dict({name: state[name] for name in reader.state_dict()})
    pixels = torch.rand(1, 3, 16, 8)
    assert torch.equal(reader.encode(pixels), tokenizer.encode(pixels))
    reader.save_pretrained(tmp_path)
    again = ImageTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == reader.fingerprint == tokenizer.fingerprint, "it is that of the codes"
    with pytest.raises(ValueError, match="has no decoder: it reads pictures and does not draw them"):
        again.decode(again.encode(pixels))


def test_later_fields_leave_old_fingerprints_alone(root: Path, tmp_path: Path) -> None:
    folder = root / "anymodal" / "models" / "emoji"
    known = json.loads((folder / "config.json").read_text(encoding="utf-8"))["image_tokenizer"]
    assert ImageTokenizer.from_pretrained(folder / "image_tokenizer").fingerprint == known
    old = shutil.copytree(folder / "image_tokenizer", tmp_path / "old")
    config = json.loads((old / "config.json").read_text(encoding="utf-8"))
    for field in ("attention_stages", "temporal_down_sampling", "has_decoder", "pictures"):
        del config[field]
    del config["quantizer"]["codebook_update"]
    (old / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert ImageTokenizer.from_pretrained(old).fingerprint == known
    plain, attentive = make(architecture="diffusers"), make(architecture="diffusers", attention_stages=(1,))
    attentive.encoder, attentive.decoder = plain.encoder, plain.decoder
    attentive.quantizer = plain.quantizer
    assert attentive.fingerprint != plain.fingerprint


def test_works_in_float64() -> None:
    tokenizer = make().double()
    codes = tokenizer.encode(torch.zeros(1, 3, 8, 8))
    assert tokenizer.decode(codes).dtype == torch.float32
    assert tokenizer.dtype == torch.float64


def test_mistakes_are_named(tmp_path: Path) -> None:
    tokenizer = make()
    with pytest.raises(ValueError, match="multiples of 4, got 18 x 16; resize or crop"):
        tokenizer.encode(torch.zeros(1, 3, 18, 16))
    with pytest.raises(ValueError, match=r"\[0, 40\), got 0 to 40"):
        tokenizer.decode(torch.tensor([[[0, 40]]]))
    with pytest.raises(ValueError, match="train one with `anymodal tokenizers image`"):
        ImageTokenizer.from_pretrained(tmp_path)


def test_light_codes_depend_on_their_own_surroundings_alone() -> None:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(ImageTokenizerConfig(channels=(32, 32), blocks=1))
    for parameter in tokenizer.encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    left = torch.rand(1, 3, 64, 64) * 2 - 1
    changed = left.clone()
    changed[..., 32:] = -changed[..., 32:]
    before, after = tokenizer.encoder(left), tokenizer.encoder(changed)
    assert torch.equal(before[..., :3], after[..., :3])
    assert not torch.allclose(before[..., 4:], after[..., 4:])
