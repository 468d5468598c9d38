"""What is asked of the sampler."""

from typing import Any

import pytest

from anymodal.decoding.config import SamplingConfig
from anymodal.prompting import Prompter, changed


@pytest.fixture(scope="module")
def prompter(toy: Any) -> Prompter:
    return Prompter(toy.parts(heads="decoupled"))


def test_options_replace_defaults() -> None:
    default = SamplingConfig(temperature=0.5, top_k=3)
    assert changed(default, {"temperature": None, "top_k": 7}) == SamplingConfig(temperature=0.5, top_k=7)
    assert changed(default, {"guidance_interval": (0.0, 0.5)}).guidance_interval == (0.0, 0.5)


def test_requests_follow_what_is_wanted(prompter: Prompter) -> None:
    drawing = prompter.request(["a dog"], {"want": "image", "guidance_scale": 2.0, "seed": 3})
    assert drawing.bounded
    assert drawing.longest == 17
    assert drawing.num_rows == 2
    writing = prompter.request(["a dog"], {"want": "text", "max_new_tokens": 5})
    assert not writing.bounded
    assert (writing.max_new_tokens, writing.num_rows) == (5, 1)
    either = prompter.request(["a dog"], {"max_images": 2, "guidance_scale": 2.0, "image_guidance_scale": 1.2})
    assert (either.max_images, either.picture_tokens, either.num_rows) == (2, 17, 3)
    assert prompter.grammar("any") is either.grammar


def test_sizes_are_checked(prompter: Prompter) -> None:
    assert prompter.grid(None, 16) == (4, 4)
    with pytest.raises(ValueError, match="draws pictures of 16 x 16 pixels"):
        prompter.request(["a dog"], {"want": "image", "width": 99})
    with pytest.raises(ValueError, match="want must be one of any, text, image, got 'video'"):
        prompter.request(["a dog"], {"want": "video"})  # type: ignore[typeddict-item]


@pytest.mark.parametrize("count", [0, -3])
def test_budgets_are_checked(prompter: Prompter, count: int) -> None:
    with pytest.raises(ValueError, match=f"max_new_tokens must be at least 1, got {count}; leave it out"):
        prompter.request(["a dog"], {"want": "text", "max_new_tokens": count})
    assert prompter.budget(None) == prompter.generation.max_new_tokens
    assert prompter.budget(2) == 2
