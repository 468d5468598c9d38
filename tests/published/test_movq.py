import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from anymodal.published.movq import movq_names, read_movq_config, write_movq_config
from anymodal.tokens.image import ImageTokenizer

# multipliers, blocks, stages with attention, time, codebook, its width, picture
SHAPES = [
    ([1], 1, [0], 1, 24, 4, (8, 6)),
    ([1, 2], 1, [], 2, 64, 4, (12, 10)),
    ([1, 2, 2], 2, [1, 2], 4, 40, 6, (16, 20)),
    ([1, 2, 1, 2], 1, [3], 4, 99, 3, (24, 40)),
    ([1, 1], 3, [0, 1], 1, 50, 8, (8, 10)),
]


def shaken(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draw weights of which every single one, norms and biases included, changes the result."""
    drawn: dict[str, Tensor] = {}
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape)
        if name.endswith(("running_var", "num_batches_tracked")):
            drawn[name] = tensor + noise.square().to(tensor.dtype)
            continue
        drawn[name] = (
            noise / tensor[:1].numel() ** 0.5
            if tensor.ndim > 1
            else 0.2 * noise + name.endswith(("weight", "conv_y.bias"))
        )
    return drawn


def near(latents: Tensor, size: int) -> Tensor:
    """Draw a codebook spread as the rows of `latents` are, so that many different codes are the nearest."""
    rows = latents[torch.randint(len(latents), (size,))]
    return (rows + 0.3 * latents.std() * torch.randn(rows.shape)).detach().float()


def make(shape: Any, pixels: Tensor) -> Any:
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    multipliers, blocks, stages, time, size, width, _ = shape
    config = Emu3VQVAEConfig(
        codebook_size=size,
        embed_dim=width,
        latent_channels=width,
        base_channels=32,
        channel_multiplier=multipliers,
        num_res_blocks=blocks,
        attn_resolutions=stages,
        hidden_size=32 * multipliers[-1],
        num_attention_heads=1,
        temporal_downsample_factor=time,
    )
    model = Emu3VQVAE(config)  # it is born in evaluation mode
    model.load_state_dict(shaken(model.state_dict()))
    with torch.no_grad():
        latents = model.quant_conv(model.encoder(pixels).movedim(2, 1))
        model.quantize.embedding.weight.copy_(near(latents.movedim(1, -1).flatten(0, 3), size))
    return model


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_and_pixels(shape: Any) -> None:
    torch.manual_seed(0)
    stills = torch.rand(2, 3, *shape[-1]) * 2 - 1
    videos = torch.rand(2, 2 * shape[3], 3, *shape[-1]) * 2 - 1
    model = make(shape, videos)
    sides = torch.tensor([shape[-1]] * 2)
    ours = read_movq_config(model.config.to_dict())
    with torch.device("meta"):
        tokenizer = ImageTokenizer(ours)
    movq_names(ours).read(model.state_dict(), tokenizer, "a test")
    tokenizer.eval()
    with torch.no_grad():
        codes = torch.stack(model.encode(stills, sides).image_tokens)
        drawn = model.decode(codes)
        grids = model.quantize(model.quant_conv(model.encoder(videos).movedim(2, 1)).movedim(1, 2))
        frames = model.decode(grids)
    assert torch.equal(tokenizer.encode(stills), codes)
    assert torch.equal(tokenizer.encode_video(videos), grids)
    assert len(codes.unique()) > 5
    assert len(grids.unique()) > 5
    torch.testing.assert_close(tokenizer(stills).pixels, drawn, atol=1e-4, rtol=0)
    torch.testing.assert_close(tokenizer.decode(codes), drawn.clamp(-1, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokenizer.decode_video(grids), frames.clamp(-1, 1), atol=1e-4, rtol=0)
    assert model.config.to_dict().items() >= write_movq_config(ours).items()
    again = movq_names(ours).write(tokenizer.state_dict())
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_missing_keys_mean_what_they_mean_there() -> None:
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    theirs = Emu3VQVAEConfig().to_dict()
    config = read_movq_config({})
    assert config == read_movq_config(theirs)
    known = {key: [*value] if isinstance(value, tuple) else value for key, value in theirs.items()}
    assert known.items() >= write_movq_config(config).items()
    with torch.device("meta"):
        model, tokenizer = Emu3VQVAE(Emu3VQVAEConfig()), ImageTokenizer(config)
    written = movq_names(config).write(tokenizer.state_dict())
    assert {n: t.shape for n, t in written.items()} == {n: t.shape for n, t in model.state_dict().items()}


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"num_attention_heads": 2}, "num_attention_heads must be 1, got 2"),
        ({"hidden_size": 512}, r"hidden_size must be the width of every stage with attention, got 512 and \[1024\]"),
        ({"embed_dim": 8}, "latent_channels must be the width of the codebook, got 4 and 8"),
        ({"temporal_downsample_factor": 3}, "power of two, got 3"),
        ({"attn_resolutions": [7]}, r"attention_stages must ascend within \[0, 4\), got \[7\]"),
    ],
)
def test_mistakes_are_named(theirs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_movq_config(theirs)


def test_what_emu3_lacks_is_named() -> None:
    config = read_movq_config({})
    with pytest.raises(ValueError, match="attends with one width"):
        write_movq_config(dataclasses.replace(config, attention_stages=(0, 3)))
    with pytest.raises(ValueError, match="needs architecture 'movq', got 'diffusers'"):
        write_movq_config(dataclasses.replace(config, architecture="diffusers", temporal_down_sampling=1))
