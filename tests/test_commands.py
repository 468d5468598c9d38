from pathlib import Path

import pytest

from anymodal.commands import FOLDERS, Program, check_folder, describe, find_program, find_root, list_programs, nearest

TOY = '''"""Play a game.

    anymodal train toy --data "a-{0..3}.tar" \\\\
        --seed 1    # two lines

Not a command: anymodal train other
"""

raise AssertionError("the tree is read, not run")
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    (tmp_path / "train" / "toy_game.py").write_text(TOY)
    (tmp_path / "train" / "_hidden.py").write_text('"""Hide."""')
    return tmp_path


def test_docstring_is_read_without_running(tree: Path) -> None:
    program = Program(tree / "train" / "toy_game.py")
    assert program.summary == "Play a game."
    assert program.examples == [["train", "toy", "--data", "a-{0..3}.tar", "--seed", "1"]]
    assert program.command == "anymodal train toy_game"
    with pytest.raises(AssertionError, match="read, not run"):
        program.load()


def test_load_needs_main(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"must define main\(\).*_hidden.py"):
        Program(tree / "train" / "_hidden.py").load()


def test_describe_lists_programs_with_first_lines(tree: Path) -> None:
    assert list(list_programs(tree, "train")) == ["toy_game"]
    assert "  toy_game    Play a game.\n" in describe(tree)
    assert "train:" not in describe(tree, ["sample"])


def test_find_program_by_words_or_path(tree: Path) -> None:
    assert find_program(tree, ["train", "toy-game", "--seed", "1"])[1] == ["--seed", "1"]
    path = tree / "train" / "toy_game.py"
    assert find_program(tree, [str(path), "--seed"]) == (Program(path), ["--seed"])


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian", "toy_game"], "did you mean train"),
        (["toy_game", "--seed"], "did you mean 'train toy_game'"),
        (["train", "toy_gme"], "did you mean toy_game"),
        (["sample", "toy_game"], "there are none"),
        (["nothing.py"], "no file"),
    ],
)
def test_typos_are_answered(tree: Path, words: list[str], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        find_program(tree, words)


def test_check_folder_returns_the_word(tree: Path) -> None:
    assert check_folder(tree, "sample") == "sample"


def test_nearest_lists_all_when_none_is_near() -> None:
    assert nearest("zzz", ["dim", "depth"]) == "there are: dim, depth."


def test_checkout_is_the_root(root: Path) -> None:
    assert find_root() == root
