from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anymodal.published.llamagen import llamagen_names, read_llamagen_config, read_shape
from anymodal.published.registry import load_image_tokenizer
from anymodal.published.vqgan import read_janus_config
from anymodal.tokens.image import ImageTokenizer

# multipliers, blocks, latent channels, codebook, its width, normalised, picture
SHAPES = [
    ([1], 1, 16, 24, 16, True, (8, 6)),
    ([1, 2], 2, 16, 64, 8, True, (12, 10)),
    ([1, 1, 3], 1, 12, 40, 12, False, (8, 12)),
    ([1, 2, 2, 1], 1, 8, 77, 4, True, (16, 24)),
]


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(before), norm(after)
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(y))) + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(self.norm(x)).flatten(2) for each in (self.q, self.k, self.v))
        weights = (q.transpose(1, 2) @ k / x.shape[1] ** 0.5).softmax(2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).view(x.shape))


class Half(nn.Module):
    """An encoder or a decoder in float64 under LlamaGen's names: stages in the order of the computation."""

    def __init__(self, ends: tuple[int, int], widths: Sequence[int], blocks: int, attended: int, change: str) -> None:
        super().__init__()
        before = 32 if change == "downsample" else widths[0]
        self.conv_in = nn.Conv2d(ends[0], before, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        middle = widths[-1] if change == "downsample" else before
        for i, width in enumerate(widths):
            stage = nn.Module()
            stage.res = nn.ModuleList(Residual(before if j == 0 else width, width) for j in range(blocks))
            stage.attn = nn.ModuleList(Attention(width) for _ in range(blocks if i == attended else 0))
            if i < len(widths) - 1:
                resample = nn.Module()
                stride, padding = (2, 0) if change == "downsample" else (1, 1)
                resample.conv = nn.Conv2d(width, width, 3, stride, padding)
                stage.add_module(change, resample)
            self.conv_blocks.append(stage)
            before = width
        self.mid = nn.ModuleList([Residual(middle, middle), Attention(middle), Residual(middle, middle)])
        self.norm_out, self.conv_out = norm(before), nn.Conv2d(before, ends[1], 3, padding=1)

    def stages(self, x: Tensor) -> Tensor:
        for stage in self.conv_blocks:
            parts: Any = stage
            for i, block in enumerate(parts.res):
                x = block(x)
                x = parts.attn[i](x) if len(parts.attn) else x
            if hasattr(stage, "downsample"):
                x = parts.downsample.conv(F.pad(x, (0, 1, 0, 1)))
            if hasattr(stage, "upsample"):
                x = parts.upsample.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        down = self.conv_in.in_channels == 3
        x = self.stages(x) if down else x
        for part in self.mid:
            x = part(x)
        x = x if down else self.stages(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Whole(nn.Module):
    def __init__(self, multipliers: Sequence[int], blocks: int, latent: int, size: int, width: int) -> None:
        super().__init__()
        widths, last = [32 * multiplier for multiplier in multipliers], len(multipliers) - 1
        self.encoder = Half((3, latent), widths, blocks, last, "downsample")
        self.decoder = Half((latent, 3), widths[::-1], blocks + 1, 0, "upsample")
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(size, width)
        self.quantize.register_buffer("codebook_used", torch.zeros(99))
        self.quant_conv, self.post_quant_conv = nn.Conv2d(latent, width, 1), nn.Conv2d(width, latent, 1)
        for name, weight in self.named_parameters():  # so that every one, norms and biases included, matters
            if weight.ndim > 1:
                nn.init.normal_(weight, std=weight[:1].numel() ** -0.5)
            else:
                nn.init.normal_(weight, mean=float(name.endswith("weight")), std=0.2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_codes_and_pixels(shape: Any) -> None:
    torch.manual_seed(0)
    multipliers, blocks, latent, size, width, normalised, sides = shape
    whole = Whole(multipliers, blocks, latent, size, width)
    state = whole.state_dict()
    pixels = torch.rand(2, 3, *sides) * 2 - 1
    reference = Whole(multipliers, blocks, latent, size, width).double()
    reference.load_state_dict(state)
    latents = reference.quant_conv(reference.encoder(pixels.double())).movedim(1, -1)
    rows = latents.flatten(0, 2)[torch.randint(latents[..., 0].numel(), (size,))]
    table = (rows + 0.3 * latents.std() * torch.randn(rows.shape)).float()  # many different codes are the nearest
    state["quantize.embedding.weight"] = table
    table = table.double()
    if normalised:
        latents, table = latents / latents.norm(dim=-1, keepdim=True), table / table.norm(dim=-1, keepdim=True)
    codes = (latents[..., None, :] - table).square().sum(-1).argmin(-1)
    drawn = reference.decoder(reference.post_quant_conv(table[codes].movedim(-1, 1))).float()

    theirs = {"codebook_size": size, "codebook_embed_dim": width, "codebook_l2_norm": normalised, "z_channels": latent}
    theirs |= {"encoder_ch_mult": multipliers, "decoder_ch_mult": multipliers, "ch": 32, "num_res_blocks": blocks}
    config = read_llamagen_config(theirs)
    with torch.device("meta"):
        tokenizer = ImageTokenizer(config)
    llamagen_names(config).read(state, tokenizer, "a test")
    tokenizer.eval()
    assert torch.equal(tokenizer.encode(pixels), codes)
    assert len(codes.unique()) > 5
    torch.testing.assert_close(tokenizer(pixels).pixels, drawn, atol=1e-4, rtol=0)
    torch.testing.assert_close(tokenizer.decode(codes), drawn.clamp(-1, 1), atol=1e-4, rtol=0)
    again = llamagen_names(config).write(tokenizer.state_dict())
    assert again.keys() == state.keys() - {"quantize.codebook_used"}
    assert all(torch.equal(again[name], state[name]) for name in again)


def test_no_arguments_are_vq_16() -> None:
    assert read_llamagen_config({}) == read_janus_config({})
    halves = {"encoder_ch_mult": [1, 2, 2, 4], "decoder_ch_mult": [1, 2, 2, 4]}
    assert read_llamagen_config(halves).down_sampling == 8


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"encoder_ch_mult": [1, 2]}, "encoder_ch_mult and decoder_ch_mult must be equal"),
        ({"encoder_ch_mult": [2, 2], "decoder_ch_mult": [2, 2]}, "must begin with 1"),
    ],
)
def test_mistakes_are_named(theirs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_llamagen_config(theirs)


@pytest.mark.parametrize("multipliers", [[1, 1, 2, 2, 4], [1, 2, 2, 4], [1, 2]])
def test_a_file_of_its_own_is_read_by_its_tensors(multipliers: list[int], tmp_path: Path) -> None:
    arguments = {"codebook_size": 32, "ch": 32, "encoder_ch_mult": multipliers, "decoder_ch_mult": multipliers}
    config = read_llamagen_config({**arguments, "num_res_blocks": 1, "z_channels": 8})
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(config).eval()
    state = llamagen_names(config).write(tokenizer.state_dict())
    assert read_shape(state) == config
    file = tmp_path / "vq_ds16_c2i.pt"
    torch.save({"model": state, "steps": 3}, file)
    with pytest.raises(ValueError, match="is a pickle, which can run code"):
        load_image_tokenizer(file)
    pixels = torch.rand(1, 3, 32, 48) * 2 - 1
    again = load_image_tokenizer(file, allow_pickle=True)
    assert torch.equal(again.encode(pixels), tokenizer.encode(pixels))
    with pytest.raises(ValueError, match="a tokenizer of LlamaGen must have encoder.conv_blocks"):
        read_shape({"conv_in.weight": torch.zeros(1)})
