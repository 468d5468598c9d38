"""What a sample holds, and why others are set aside (the index counts these in test_index.py)."""

import io

import pytest
from PIL import Image

from anymodal.data.checks import Holds, SetAside, check_members


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, "WEBP")
    return stream.getvalue()


TURNS = b'{"turns": [{"role": "user", "parts": [{"look": "webp"}, {"text": "Which?"}]}]}'


@pytest.mark.parametrize(
    ("members", "holds"),
    [
        ({"txt": b"a dog"}, Holds.CAPTION),
        ({"webp": picture(), "txt": b"a dog"}, Holds.CAPTION | Holds.PICTURE),
        ({"webp": picture(), "json": TURNS}, Holds.TURNS | Holds.PICTURE),
        ({"codes.0123.npy": b"", "json": TURNS}, Holds.TURNS | Holds.CODES),
        ({"json": b'{"captions": ["a dog"], "url": 3}'}, Holds.CAPTION),
    ],
)
def test_check_says_what_is_held(members: dict[str, bytes], holds: Holds) -> None:
    assert check_members(members) == holds


def test_check_refuses_with_a_reason_and_more() -> None:
    with pytest.raises(SetAside, match="names 'webp', the sample has json") as caught:
        check_members({"json": TURNS})
    assert caught.value.reason == "member missing"
    with pytest.raises(SetAside, match="^picture "):
        check_members({"webp": picture()[:-9]})


def test_check_can_leave_pictures_unverified_and_take_other_keys() -> None:
    assert check_members({"webp": b"x"}, verify_pictures=False) == Holds.PICTURE
    with pytest.raises(SetAside, match="no picture, caption or turns"):
        check_members({"webp": picture()}, image_keys=("png",))
