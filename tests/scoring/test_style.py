import re

from anymodal.scoring.style import STYLE


def test_light_and_dark_name_the_same_colours_and_nothing_from_outside() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)[:2]
    assert set(re.findall(r"--\w+(?=:)", light)) == set(re.findall(r"--\w+(?=:)", dark))
    used = set(re.findall(r"var\((--\w+)\)", STYLE))
    assert used <= set(re.findall(r"--\w+(?=:)", light))
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    assert STYLE.count("{") == STYLE.count("}")
