import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from anymodal.configuration import check_ranges, from_dict, to_dict


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 3
    sizes: tuple[tuple[int, int], ...] = ((1, 2),)


@dataclass(frozen=True, kw_only=True)
class Outer:
    rate: float
    kind: Literal["a", "b"] = "a"
    inner: Inner = Inner()
    maybe: Inner | None = None
    name: str | None = None
    flag: bool = False
    pair: tuple[float, str] = (1.0, "x")


def test_round_trip_through_json() -> None:
    config = Outer(rate=0.5, kind="b", inner=Inner(sizes=((3, 4), (5, 6))), maybe=Inner(width=9), flag=True)
    data = json.loads(json.dumps(to_dict(config)))
    assert data["inner"]["sizes"] == [[3, 4], [5, 6]]
    assert from_dict(Outer, data) == config
    assert from_dict(Outer, {"rate": 1}) == Outer(rate=1.0)
    assert isinstance(from_dict(Outer, {"rate": 1}).rate, float)
    assert to_dict({"x": (1, Inner())}) == {"x": [1, {"width": 3, "sizes": [[1, 2]]}]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "model lacks rate"),
        ({"rate": 1, "knid": "a"}, "model has an unknown key 'knid'; did you mean 'kind'"),
        ({"rate": 1, "zzz": 1}, "known keys: rate, kind"),
        ({"rate": 1, "inner": {"widht": 1}}, "model.inner has an unknown key 'widht'; did you mean 'width'"),
        ({"rate": 1, "maybe": {"width": "1"}}, "model.maybe.width must be a int, got '1'"),
        ({"rate": 1, "kind": "c"}, "model.kind must be one of 'a', 'b', got 'c'"),
        ({"rate": 1, "inner": {"sizes": [[1, "2"]]}}, r"model.inner.sizes\[0\]\[1\] must be a int"),
        ({"rate": 1, "inner": {"sizes": 4}}, "model.inner.sizes must be a list"),
        ({"rate": 1, "pair": [1.0]}, "model.pair must have 2 entries, got 1"),
        ({"rate": 1, "flag": 1}, "model.flag must be a bool"),
        ({"rate": True}, "model.rate must be a float"),
        ({"rate": 1, "inner": {"width": True}}, "model.inner.width must be a int"),
        ({"rate": 1, "inner": []}, "model.inner must be a mapping"),
    ],
)
def test_mistakes_are_named_with_their_place(data: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(Outer, data, "model")


def test_sizes_have_bounds() -> None:
    check_ranges(Inner(width=3), width=3)
    check_ranges(Inner(width=0), 0, width=3)
    for width, lowest in ((4, 1), (0, 1), (-1, 0)):
        with pytest.raises(ValueError, match=rf"width must be in \[{lowest}, 3\], got {width}"):
            check_ranges(Inner(width=width), lowest, width=3)
