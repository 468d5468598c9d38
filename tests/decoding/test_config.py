import math

import pytest

from anymodal.configuration import from_dict, to_dict
from anymodal.decoding.config import GenerationConfig, SamplingConfig


def test_defaults_of_a_folder_round_trip() -> None:
    config = GenerationConfig(image=SamplingConfig(top_k=50, guidance_scale=3.0), max_new_tokens=9)
    assert from_dict(GenerationConfig, to_dict(config)) == config
    assert from_dict(GenerationConfig, {}).text.temperature == 0
    with pytest.raises(ValueError, match="top_p must lie in"):
        from_dict(GenerationConfig, {"image": {"top_p": 2.0}})


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["temperature", "guidance_scale", "image_guidance_scale"])
def test_what_is_no_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        from_dict(SamplingConfig, {name: value})
