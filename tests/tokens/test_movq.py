from typing import Any

import pytest
import torch
from torch import Tensor

from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig


def make(**changes: Any) -> ImageTokenizer:
    torch.manual_seed(0)
    quantizer = QuantizerConfig(kind="vq", codebook_size=64, codebook_dim=4, codebook_update="gradient")
    config: dict[str, Any] = {"channels": (32, 32), "blocks": 1, "latent_channels": 4, "temporal_down_sampling": 4}
    tokenizer = ImageTokenizer(ImageTokenizerConfig(architecture="movq", quantizer=quantizer, **{**config, **changes}))
    for weight in tokenizer.eval().encoder.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight[:1].numel() ** -0.5)
    with torch.no_grad():  # vectors amid the latents, so that many codes are the nearest
        latents = tokenizer.encoder(noise(8, 3, 8, 8)).movedim(1, -1).flatten(0, 2)
        table = tokenizer.get_parameter("quantizer.codebook.embedding")
        table.copy_(latents[torch.randint(len(latents), (64,))] + 0.3 * latents.std() * torch.randn(64, 4))
    return tokenizer


def noise(*shape: int) -> Tensor:
    return torch.rand(shape) * 2 - 1


@pytest.mark.parametrize("changes", [{}, {"temporal_down_sampling": 1}, {"attention_stages": (0, 1), "blocks": 2}])
def test_codes_and_pixels_of_rectangles(changes: dict[str, Any]) -> None:
    tokenizer = make(**changes)
    pixels = noise(2, 3, 12, 6)
    codes = tokenizer.encode(pixels)
    assert (codes.shape, codes.dtype) == ((2, 6, 3), torch.int64)
    assert len(codes.unique()) > 5
    decoded = tokenizer.decode(codes)
    assert (decoded.shape, decoded.dtype) == (pixels.shape, torch.float32)
    result = tokenizer(pixels)
    assert torch.equal(result.codes, codes)
    torch.testing.assert_close(result.pixels.clamp(-1, 1), decoded, atol=1e-5, rtol=0)
    assert torch.equal(tokenizer.double().encode(pixels), codes)
    torch.testing.assert_close(tokenizer.decode(codes), decoded, atol=1e-4, rtol=0)


def test_a_still_picture_is_a_video_that_stands_still() -> None:
    tokenizer = make()
    pixels = noise(2, 3, 12, 6)
    codes = tokenizer.encode(pixels)
    assert torch.equal(tokenizer.encode_video(pixels[:, None].expand(-1, 4, -1, -1, -1)), codes[:, None])
    frames = tokenizer.decode_video(codes[:, None])
    assert frames.shape == (2, 4, 3, 12, 6)
    torch.testing.assert_close(frames[:, 0], tokenizer.decode(codes), atol=1e-5, rtol=0)


def test_what_comes_later_changes_nothing() -> None:
    tokenizer = make()
    video = noise(1, 12, 3, 8, 8)
    changed = torch.cat([video[:, :8], noise(1, 4, 3, 8, 8)], dim=1)
    before, after = tokenizer.encode_video(video), tokenizer.encode_video(changed)
    assert before.shape == (1, 3, 4, 4)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2], after[:, 2])
    after[:, :2], after[:, 2] = before[:, :2], (before[:, 2] + 1) % 64
    frames, other = tokenizer.decode_video(before), tokenizer.decode_video(after)
    torch.testing.assert_close(frames[:, :8], other[:, :8], atol=1e-5, rtol=0)
    assert not torch.allclose(frames[:, 8:], other[:, 8:], atol=1e-3)


def test_every_weight_learns() -> None:
    tokenizer = make().train()
    result = tokenizer(noise(2, 3, 8, 8))
    (result.pixels.square().mean() + result.codebook_loss).backward()
    assert [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_mistakes_are_named() -> None:
    tokenizer = make()
    with pytest.raises(ValueError, match="a multiple of 4 frames, got 6; repeat or drop some"):
        tokenizer.encode_video(noise(1, 6, 3, 8, 8))
    with pytest.raises(ValueError, match="multiples of 2, got 7 x 8"):
        tokenizer.encode_video(noise(1, 4, 3, 7, 8))
    with pytest.raises(ValueError, match=r"\[0, 64\), got 0 to 64"):
        tokenizer.decode_video(torch.tensor([[[[0, 64]]]]))
    plain = ImageTokenizer(ImageTokenizerConfig(channels=(32,), blocks=1))
    with pytest.raises(ValueError, match="videos need a movq tokenizer"):
        plain.encode_video(noise(1, 4, 3, 8, 8))
    with pytest.raises(ValueError, match="videos need a movq tokenizer"):
        plain.decode_video(torch.zeros(1, 1, 2, 2, dtype=torch.long))
