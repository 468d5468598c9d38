import pytest

from anymodal.configuration import from_dict, to_dict
from anymodal.model.config import AnyModalConfig, TransformerConfig, UnderstandingConfig


def test_round_trip() -> None:
    config = AnyModalConfig(
        transformer=TransformerConfig(qk_norm="layer"), understanding=UnderstandingConfig(), heads="decoupled"
    )
    assert from_dict(AnyModalConfig, to_dict(config)) == config


@pytest.mark.parametrize(("size", "patch", "merge", "tokens"), [(64, 8, 1, 64), (64, 8, 2, 16), (384, 16, 1, 576)])
def test_tokens_of_a_picture(size: int, patch: int, merge: int, tokens: int) -> None:
    assert UnderstandingConfig(image_size=size, patch_size=patch, merge=merge).num_tokens == tokens
