from typing import Any

import pytest

from anymodal.configuration import from_dict, to_dict
from anymodal.data.config import DataConfig


def test_shards_are_needed() -> None:
    assert from_dict(DataConfig, {"train": "a.tar"}) == DataConfig(train="a.tar")
    assert to_dict(DataConfig(train="a.tar", num_workers=0))["num_workers"] == 0
    missing: dict[str, Any] = {}
    with pytest.raises(ValueError, match="lacks train"):
        from_dict(DataConfig, missing, "data")


def test_every_pattern_has_its_ratio() -> None:
    assert from_dict(DataConfig, {"train": "a.tar::b.tar", "ratios": [1, 0.5]}).ratios == (1, 0.5)
    with pytest.raises(ValueError, match="as many as the patterns of train, got 2 for 1; part"):
        DataConfig(train="a.tar", ratios=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"ratios must be numbers above 0, got \[1.0, 0.0\]"):
        DataConfig(train="a.tar::b.tar", ratios=(1.0, 0.0))
