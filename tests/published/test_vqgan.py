import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anymodal.published.vqgan import (
    janus_names,
    read_chameleon_config,
    read_janus_config,
    read_taming_config,
    taming_names,
    without_decoder,
    write_chameleon_config,
    write_janus_config,
)
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.image_config import ImageTokenizerConfig

# multipliers, blocks, stages with attention, latent channels, codebook, its width, picture
SHAPES = [
    ([1], 1, (0,), 16, 24, 16, (8, 6)),
    ([1, 2], 1, (), 16, 64, 8, (12, 10)),
    ([1, 1, 3], 2, (2,), 12, 40, 12, (8, 12)),
    ([1, 2, 1, 2], 1, (1, 3), 8, 33, 4, (16, 24)),
    ([1, 2], 3, (0, 1), 20, 100, 24, (8, 10)),
]
JANUS_SHAPES = [shape for shape in SHAPES if shape[2] == (len(shape[0]) - 1,)] + [
    ([1, 2], 2, (1,), 16, 64, 8, (12, 10)),
    ([1, 2, 2, 1], 1, (3,), 8, 77, 4, (16, 24)),
]


def pixels_of(sides: tuple[int, int]) -> Tensor:
    return torch.rand(2, 3, *sides) * 2 - 1


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def load(config: ImageTokenizerConfig, names: Any, state: dict[str, Tensor]) -> ImageTokenizer:
    with torch.device("meta"):
        tokenizer = ImageTokenizer(config)
    names.read(state, tokenizer, "a test")
    return tokenizer.eval()


def transformers_config(shape: Any, **more: Any) -> dict[str, Any]:
    multipliers, blocks, _, latent, size, width, _ = shape
    return {
        "base_channels": 32,
        "channel_multiplier": multipliers,
        "num_res_blocks": blocks,
        "latent_channels": latent,
        "num_embeddings": size,
        "embed_dim": width,
        **more,
    }


def shaken(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draw weights of which every single one, norms and biases included, changes the result."""
    drawn: dict[str, Tensor] = {}
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape)
        drawn[name] = noise / tensor[:1].numel() ** 0.5 if tensor.ndim > 1 else 0.2 * noise + name.endswith("weight")
    return drawn


def near(latents: Tensor, size: int) -> Tensor:
    """Draw a codebook spread as the rows of `latents` are, so that many different codes are the nearest."""
    rows = latents[torch.randint(len(latents), (size,))]
    return (rows + 0.3 * latents.std() * torch.randn(rows.shape)).detach().float()


@dataclass
class ByHand:
    """The forward pass of a VQGAN in taming's layout in float64, from tensors under their names; it notes which."""

    state: dict[str, Tensor]
    levels: int
    blocks: int
    attended: tuple[int, ...]
    used: set[str] = field(default_factory=set)

    def get(self, name: str) -> Tensor:
        self.used.add(name)
        return self.state[name].double()

    def conv(self, name: str, x: Tensor, padding: int = 1, stride: int = 1) -> Tensor:
        return F.conv2d(x, self.get(f"{name}.weight"), self.get(f"{name}.bias"), padding=padding, stride=stride)

    def norm(self, name: str, x: Tensor) -> Tensor:
        groups = x.reshape(len(x), 32, -1)
        spread = (groups.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        even = ((groups - groups.mean(-1, keepdim=True)) / spread).view(x.shape)
        return even * self.get(f"{name}.weight")[:, None, None] + self.get(f"{name}.bias")[:, None, None]

    def residual(self, name: str, x: Tensor) -> Tensor:
        y = x
        for i in (1, 2):
            y = self.norm(f"{name}.norm{i}", y)
            y = self.conv(f"{name}.conv{i}", y * y.sigmoid())
        shortcut = f"{name}.nin_shortcut"
        return y + (self.conv(shortcut, x, padding=0) if f"{shortcut}.weight" in self.state else x)

    def attention(self, name: str, x: Tensor) -> Tensor:
        y = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{each}", y, padding=0).flatten(2) for each in "qkv")
        weights = (torch.einsum("bci,bcj->bij", q, k) * x.shape[1] ** -0.5).softmax(-1)
        seen = torch.einsum("bij,bcj->bci", weights, v).view(x.shape)
        return x + self.conv(f"{name}.proj_out", seen, padding=0)

    def stage(self, name: str, x: Tensor, level: int, blocks: int) -> Tensor:
        for i in range(blocks):
            x = self.residual(f"{name}.block.{i}", x)
            x = self.attention(f"{name}.attn.{i}", x) if level in self.attended else x
        return x

    def middle(self, coder: str, x: Tensor) -> Tensor:
        x = self.attention(f"{coder}.mid.attn_1", self.residual(f"{coder}.mid.block_1", x))
        return self.residual(f"{coder}.mid.block_2", x)

    def last(self, coder: str, x: Tensor) -> Tensor:
        x = self.norm(f"{coder}.norm_out", x)
        return self.conv(f"{coder}.conv_out", x * x.sigmoid())

    def encode(self, pixels: Tensor) -> Tensor:
        x = self.conv("encoder.conv_in", pixels.double())
        for level in range(self.levels):
            x = self.stage(f"encoder.down.{level}", x, level, self.blocks)
            if level < self.levels - 1:
                x = self.conv(f"encoder.down.{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), padding=0, stride=2)
        return self.conv("quant_conv", self.last("encoder", self.middle("encoder", x)), padding=0)

    def codes(self, latents: Tensor) -> Tensor:
        apart = latents.movedim(1, -1)[..., None, :] - self.get("quantize.embedding.weight")
        return apart.square().sum(-1).argmin(-1)

    def decode(self, codes: Tensor) -> Tensor:
        vectors = self.get("quantize.embedding.weight")[codes].movedim(-1, 1)
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", vectors, padding=0))
        x = self.middle("decoder", x)
        for level in reversed(range(self.levels)):
            x = self.stage(f"decoder.up.{level}", x, level, self.blocks + 1)
            if level:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(f"decoder.up.{level}.upsample.conv", x)
        return self.last("decoder", x)


@pytest.mark.parametrize("attends", ["vanilla", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chameleons_codes(shape: Any, attends: str) -> None:
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    torch.manual_seed(0)
    resolution, stages = 64, shape[2] if attends == "vanilla" else ()
    attended = [resolution >> stage for stage in stages] or None
    config = transformers_config(shape, resolution=resolution, attn_resolutions=attended, attn_type=attends)
    model = ChameleonVQVAE(ChameleonVQVAEConfig(**config))  # it is born in evaluation mode
    model.load_state_dict(shaken(model.state_dict()))
    pixels = pixels_of(shape[-1])
    with torch.no_grad():
        latents = model.quant_conv(model.encoder(pixels))
        model.quantize.embedding.weight.copy_(near(latents.movedim(1, -1).flatten(0, 2), shape[4]))
        theirs = model.encode(pixels).image_tokens.view(2, *latents.shape[-2:])
    ours = read_chameleon_config(model.config.to_dict())
    assert ours.attention_stages == stages
    tokenizer = load(ours, taming_names(ours), model.state_dict())
    assert torch.equal(tokenizer.encode(pixels), theirs)
    assert len(theirs.unique()) > 5
    assert write_chameleon_config(ours, resolution=resolution).items() >= config.items()
    assert same(taming_names(ours).write(tokenizer.state_dict()), model.state_dict())
    with pytest.raises(ValueError, match="no decoder"):
        tokenizer.decode(theirs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tamings_codes_and_pixels(shape: Any) -> None:
    torch.manual_seed(0)
    multipliers, blocks, stages, latent, size, width, sides = shape
    coder = {"double_z": False, "in_channels": 3, "out_ch": 3, "dropout": 0.0, "ch": 32, "ch_mult": multipliers}
    coder |= {"num_res_blocks": blocks, "z_channels": latent, "resolution": 64}
    coder |= {"attn_resolutions": [64 >> stage for stage in stages]}
    theirs = {"embed_dim": width, "n_embed": size, "ddconfig": coder}
    config = read_taming_config(theirs)
    state = shaken(taming_names(config).write(ImageTokenizer(config).state_dict()))
    reference = ByHand(state, len(multipliers), blocks, stages)
    pixels = pixels_of(sides)
    latents = reference.encode(pixels)
    state["quantize.embedding.weight"] = near(latents.movedim(1, -1).flatten(0, 2), size)
    codes = reference.codes(latents)
    drawn = reference.decode(codes)
    assert reference.used == state.keys()
    unused = {"loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1), "colorize": torch.zeros(3, 1, 1, 1)}
    tokenizer = load(config, taming_names(config), {**state, **unused})
    assert torch.equal(tokenizer.encode(pixels), codes)
    assert len(codes.unique()) > 5
    torch.testing.assert_close(tokenizer(pixels).pixels, drawn.float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokenizer.decode(codes), drawn.float().clamp(-1, 1), atol=1e-4, rtol=0)
    assert same(taming_names(config).write(tokenizer.state_dict()), state)


def test_chameleons_decoder_comes_from_taming() -> None:
    torch.manual_seed(0)
    theirs = transformers_config(SHAPES[1])
    whole = read_chameleon_config(theirs, has_decoder=True)
    state = shaken(taming_names(whole).write(ImageTokenizer(whole).state_dict()))
    tokenizer = load(whole, taming_names(whole), state)
    half = read_chameleon_config(theirs)
    assert half == dataclasses.replace(whole, has_decoder=False)
    reader = load(half, taming_names(half), state)
    pixels = pixels_of((12, 10))
    assert torch.equal(reader.encode(pixels), tokenizer.encode(pixels))
    assert tokenizer.decode(tokenizer.encode(pixels)).shape == pixels.shape
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("decoder.")}
    assert same(taming_names(whole).write(without_decoder(tokenizer.state_dict())), kept)
    assert reader.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("unit_length", [True, False], ids=["unit length", "any length"])
@pytest.mark.parametrize("shape", JANUS_SHAPES, ids=str)
def test_januses_codes_and_pixels(shape: Any, unit_length: bool) -> None:
    from transformers import JanusVQVAE, JanusVQVAEConfig

    torch.manual_seed(0)
    config = transformers_config(shape)
    model = JanusVQVAE(JanusVQVAEConfig(**config))  # it is born in evaluation mode
    model.load_state_dict(shaken(model.state_dict()))
    pixels = pixels_of(shape[-1])
    with torch.no_grad():
        latents = model.quant_conv(model.encoder(pixels)).movedim(1, -1)
        table = near(latents.flatten(0, 2), shape[4])
        unit = table / table.norm(dim=1, keepdim=True)
        model.quantize.embedding.weight.copy_(unit if unit_length else table)
        model.quantize.quant_state_dims = list(latents.shape[1:3])
        # transformers compares without normalising, which is the same for a table of unit length alone
        theirs = model.encode(pixels).image_tokens.view(latents.shape[:3])
        normalised = (latents / latents.norm(dim=-1, keepdim=True)).double()
        expected = (normalised @ unit.double().T).argmax(-1)
        drawn = model.decode(expected.flatten(1))
    ours = read_janus_config(model.config.to_dict())
    tokenizer = load(ours, janus_names(ours), model.state_dict())
    assert torch.equal(tokenizer.encode(pixels), expected)
    assert torch.equal(expected, theirs) == unit_length
    assert len(expected.unique()) > 5
    torch.testing.assert_close(tokenizer(pixels).pixels, drawn, atol=1e-4, rtol=0)
    torch.testing.assert_close(tokenizer.decode(expected), drawn.clamp(-1, 1), atol=1e-4, rtol=0)
    assert write_janus_config(ours).items() >= config.items()
    assert same(janus_names(ours).write(tokenizer.state_dict()), model.state_dict())


def test_missing_keys_mean_what_they_mean_there() -> None:
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, JanusVQVAE, JanusVQVAEConfig

    chameleon, janus = read_chameleon_config({}), read_janus_config({})
    assert chameleon == read_chameleon_config(ChameleonVQVAEConfig().to_dict())
    assert janus == read_janus_config(JanusVQVAEConfig().to_dict())
    with torch.device("meta"):
        models = ChameleonVQVAE(ChameleonVQVAEConfig()), JanusVQVAE(JanusVQVAEConfig())
        tokenizers = ImageTokenizer(chameleon), ImageTokenizer(janus)
    for names, tokenizer, model in zip((taming_names, janus_names), tokenizers, models, strict=True):
        written = names(tokenizer.config).write(tokenizer.state_dict())
        assert {n: t.shape for n, t in written.items()} == {n: t.shape for n, t in model.state_dict().items()}
    for config, theirs in ((write_chameleon_config(chameleon), models[0]), (write_janus_config(janus), models[1])):
        known = {key: [*v] if isinstance(v, tuple) else v for key, v in theirs.config.to_dict().items()}
        assert known.items() >= config.items()


def plain(**changes: Any) -> ImageTokenizerConfig:
    return dataclasses.replace(read_chameleon_config({}, has_decoder=True), **changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: read_chameleon_config({"double_latent": True}), "vq_config.double_latent must be False, got True"),
        (lambda: read_chameleon_config({"channel_multiplier": [2, 4]}), "must begin with 1, got"),
        (lambda: read_chameleon_config({"num_embeddings": "8192"}), "codebook_size must be a int"),
        (lambda: read_taming_config({"embed_dim": 8}), "lacks n_embed, ddconfig; add it"),
        (lambda: write_janus_config(plain()), "transformers' Janus needs kind 'l2-vq', got 'vq'"),
        (lambda: write_chameleon_config(plain(norm_groups=16)), "needs norm_groups 32, got 16"),
        (lambda: write_chameleon_config(plain(channels=(64, 96))), "multiples of the first"),
        (lambda: write_chameleon_config(plain(mid_attention=False, attention_stages=(1,))), "everywhere or nowhere"),
    ],
)
def test_mistakes_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_files_are_named() -> None:
    config = read_chameleon_config(transformers_config(SHAPES[1]))
    state = taming_names(config).write(ImageTokenizer(config).state_dict())
    state["encoder.down.7.block.0.conv1.bias"] = state.pop("encoder.down.0.block.0.conv1.bias")
    with pytest.raises(ValueError, match=r"missing tensors.*down\.0.*unknown tensors.*down\.7"):
        load(config, taming_names(config), state)
