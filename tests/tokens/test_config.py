import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anymodal.tokens.config import SPECIALS, ChatTemplate, PictureLayout


def test_defaults_are_one_fixed_grid_and_special_ids_around_turns() -> None:
    assert PictureLayout().sizes == ((8, 8),)
    template = ChatTemplate()
    named = [*template.begin, *template.user[0], *template.assistant[0], *template.assistant[1], *template.plain_end]
    assert named == ["<bos>", "<user>", "<assistant>", "<eos>", "<eos>"]
    assert {name.strip("<>") for name in named} <= set(SPECIALS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ()}, "at least one size"),
        ({"sizes": ((8, 0),)}, r"from 1 on, not \(8, 0\)"),
        ({"sizes": ((8, 8), (9, 9))}, "use kind 'rows' for several"),
        ({"kind": "rows", "sizes": ((8, 8), (8, 8))}, "stands twice"),
    ],
)
def test_layout_refuses_what_no_picture_can_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PictureLayout(**options)


def test_values_of_another_type_are_refused_without_the_type_check_of_the_tests() -> None:
    layout, template = PictureLayout(), ChatTemplate()
    object.__setattr__(layout, "kind", "spiral")
    with pytest.raises(ValueError, match="'fixed' or 'rows', not 'spiral'"):
        layout.__post_init__()
    object.__setattr__(template, "user", ("<user>",))
    with pytest.raises(ValueError, match="user of a chat template must be a pair"):
        template.__post_init__()
    with pytest.raises(ValueError, match="begin of a chat template must be a string that is not empty, not ''"):
        ChatTemplate(begin=("",))


def test_importing_the_configuration_loads_nothing_heavy(root: Path) -> None:
    code = (
        "import sys, anymodal.tokens.config; print(sorted({'torch', 'numpy', 'PIL', 'tokenizers'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
