from pathlib import Path
from typing import Any

import pytest

from anymodal.commands import Program
from anymodal.options import build_parser, find_config, parse

TOY = '''"""Draw prompts.

    anymodal sample toy "a dog" --model.dim 4

Reads out-%06d.tar.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Shape the encoder."""

    rate: float = 1e-3
    kind: Literal["wide", "local"] = "wide"


@dataclass(frozen=True, kw_only=True)
class Model:
    """Shape the model."""

    dim: int = 8
    """Width of the residual stream."""
    grids: tuple[tuple[int, int], ...] = ((8, 8),)
    encoder: Encoder = Encoder()
    second: Encoder | None = None

    def __post_init__(self) -> None:
        """Check."""
        if self.dim < 1:
            raise ValueError(f"dim must be at least 1, got {self.dim}; raise it.")


def main(
    prompts: list[str],
    *,
    out: Path = Path("drawn"),
    model: Model = Model(dim=16),
    top_k: int | None = 5,
    tile: bool = False,
    exact: Literal["auto"] | bool = "auto",
) -> None:
    """Draw.

    Args:
        prompts: What to draw, 100% of it.
        out: Where drawings go.
    """
'''


@pytest.fixture
def toy(tmp_path: Path) -> Program:
    folder = tmp_path / "sample"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY)
    (tmp_path / "configs" / "toy").mkdir(parents=True)
    (tmp_path / "configs" / "toy" / "small.yaml").write_text("model: {dim: 4, second: {rate: 1e-4}}\ntop_k: null\n")
    return Program(folder / "toy.py")


def options(toy: Program, *argv: str) -> dict[str, Any]:
    return parse(toy, argv, toy.path.parents[1])[1]


def test_defaults_and_words_of_any_spelling(toy: Program) -> None:
    parsed = options(toy, "a dog", "null", "1", "a: {b")
    assert parsed["prompts"] == ["a dog", "null", "1", "a: {b"]
    assert parsed["out"] == Path("drawn")
    assert parsed["model"].dim == 16
    assert parsed["tile"] is False


def test_dashes_flags_and_nested_options(toy: Program) -> None:
    parsed = options(toy, "x", "--top-k=null", "--model.encoder.rate", "1e-4", "--model.grids", "[[2, 3]]", "--tile")
    assert parsed["top_k"] is None
    assert parsed["tile"] is True
    assert parsed["model"].encoder.rate == 1e-4
    assert parsed["model"].grids == ((2, 3),)
    assert options(toy, "x", "--tile", "no")["tile"] is False
    assert [options(toy, "x", *words)["exact"] for words in ([], ["--exact"], ["--exact", "no"])] == [
        "auto",
        True,
        False,
    ]
    assert options(toy, "x", "--exact", "auto", "--tile")["exact"] == "auto"
    assert options(toy, "x", "--model.second.rate", "3")["model"].second.rate == 3.0


def test_shipped_config_and_overrides(toy: Program) -> None:
    parsed = options(toy, "x", "--config", "configs/toy/small.yaml", "--model.dim=5")
    assert (parsed["model"].dim, parsed["model"].second.rate, parsed["top_k"]) == (5, 1e-4, None)


def test_config_here_hides_the_shipped_one(toy: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "configs").mkdir(parents=True)
    (tmp_path / "here" / "configs" / "own.yaml").touch()
    (tmp_path / "configs" / "own.yaml").touch()
    monkeypatch.chdir(tmp_path / "here")
    assert find_config("configs/own.yaml", tmp_path) == Path("configs/own.yaml")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x", "--model.dmi", "3"], "no option --model.dmi; did you mean --model.dim?"),
        (["x", "--model.second.rte", "3"], "did you mean --model.second.rate?"),
        (["x", "--titel"], "did you mean --tile?"),
        (["x", "--model.dim", "wide"], "--model.dim must be int, got wide"),
        (["x", "--model.dim", "0"], "dim must be at least 1, got 0"),
        (["--tile"], "needs PROMPTS"),
        (["x", "--model.encoder.kind", "tall"], "--model.encoder.kind must be one of 'wide', 'local', got tall. See"),
        (["x", "--exact=maybe"], "--exact must be 'auto' or true or false, got maybe. See"),
        (["x", "--top_k", "few"], "--top_k must be int or null, got few. See"),
        (["x", "--config", "configs/toy/smal.yaml"], "did you mean configs/toy/small.yaml?"),
        (["x", "--config"], "needs the path"),
    ],
)
def test_mistakes_name_the_way_out(toy: Program, argv: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        options(toy, *argv)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"modle: {}", "unknown key 'modle'; did you mean model?"),
        (b"model: {encoder: {rat: 1}}", "unknown key 'model.encoder.rat'; did you mean model.encoder.rate?"),
        (b"model: {second: {rat: 1}}", "did you mean model.second.rate?"),
        (b"model: 3", "model must be a mapping of options, got 3"),
        (b"a: [1", "must be YAML"),
        (b"- a", "must hold a mapping of options, got list"),
        (b"out: \xff", "must be UTF-8"),
    ],
)
def test_mistakes_in_a_config_name_file_and_key(toy: Program, tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    with pytest.raises(ValueError) as caught:
        options(toy, "x", "--config", str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_help_holds_example_descriptions_and_types(toy: Program) -> None:
    text = " ".join(build_parser(toy, toy.load().main).format_help().split())
    assert 'anymodal sample toy "a dog" --model.dim 4' in text
    assert "Reads out-%06d.tar." in text
    assert "What to draw, 100% of it." in text
    assert "Where drawings go. (type: Path, default: drawn)" in text
    assert "Width of the residual stream. (type: int, default: 16)" in text
    assert "usage: anymodal sample toy PROMPTS ... [options]" in text


def test_printed_config_is_read_back(toy: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        options(toy, "--print-config", "--model.dim", "7")
    assert caught.value.code == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out.replace("prompts: null\n", ""))
    assert options(toy, "x", "--config", str(path))["model"].dim == 7


def test_keys_of_a_typed_dict_are_options(tmp_path: Path) -> None:
    program = tmp_path / "toy.py"
    program.write_text(
        '''"""Draw."""

from typing import TypedDict, Unpack


class Options(TypedDict, total=False):
    """How to draw.

    Attributes:
        seed: of the picture.
        top_k: keep so many.
    """

    seed: int
    top_k: int | None


def main(*, model: str = "emoji", **options: Unpack[Options]) -> None:
    """Draw."""
''',
        encoding="utf-8",
    )
    toy = Program(program)
    assert parse(toy, ["--seed", "3"], tmp_path)[1] == {"model": "emoji", "seed": 3}
    assert parse(toy, ["--top-k=null"], tmp_path)[1] == {"model": "emoji", "top_k": None}
    assert "of the picture." in build_parser(toy, toy.load().main).format_help()
    with pytest.raises(ValueError, match="did you mean --seed"):
        parse(toy, ["--sede", "3"], tmp_path)
