from typing import Any

import pytest

from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig


def test_down_sampling_counts_every_halving() -> None:
    assert ImageTokenizerConfig(channels=(32,), patch=4).down_sampling == 4
    assert ImageTokenizerConfig(channels=(32, 64, 64), patch=2).down_sampling == 8
    assert ImageTokenizerConfig(architecture="diffusers", channels=(32, 32, 64, 64, 64)).down_sampling == 16


def test_channels_are_needed() -> None:
    with pytest.raises(ValueError, match="channels"):
        ImageTokenizerConfig(channels=())


NARROW = QuantizerConfig(codebook_dim=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_stages": (1,)}, "attention_stages belong to diffusers and movq, got unshuffle"),
        ({"architecture": "diffusers", "attention_stages": (1, 0)}, r"ascend within \[0, 2\), got \[1, 0\]"),
        ({"architecture": "diffusers", "attention_stages": (2,)}, r"ascend within \[0, 2\), got \[2\]"),
        ({"temporal_down_sampling": 3}, "must be a power of two, got 3"),
        ({"temporal_down_sampling": 2}, "temporal_down_sampling belongs to movq, got 'unshuffle'"),
        ({"architecture": "movq", "quantizer": NARROW}, "must be the width of the codebook, got 64 and 4"),
        ({"architecture": "movq", "latent_channels": 8, "norm_groups": 16}, "movq needs norm_groups 32, got 16"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageTokenizerConfig(**options)
