import pytest

from anymodal.tokens.image_config import ImageTokenizerConfig


def test_down_sampling_counts_every_halving() -> None:
    assert ImageTokenizerConfig(channels=(32,), patch=4).down_sampling == 4
    assert ImageTokenizerConfig(channels=(32, 64, 64), patch=2).down_sampling == 8
    assert ImageTokenizerConfig(architecture="diffusers", channels=(32, 32, 64, 64, 64)).down_sampling == 16


def test_channels_are_needed() -> None:
    with pytest.raises(ValueError, match="channels"):
        ImageTokenizerConfig(channels=())
