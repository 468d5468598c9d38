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
