"""Find programs in a tree of folders: `anymodal train pretrain` is `train/pretrain.py`. Nothing is imported for it."""

import ast
import difflib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

FOLDERS = {
    "tokenizers": "Learn tokenizers of text and pictures, and turn pictures into codes.",
    "train": "Pack data, train models, hand them on.",
    "sample": "Draw, answer, and score what a model draws and answers.",
}


@dataclass(frozen=True)
class Program:
    """Read a file of the tree without running it.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "toy.py"
    >>> _ = path.write_text('"Play a game."')
    >>> Program(path).summary
    'Play a game.'
    """

    path: Path

    @property
    def docstring(self) -> str:
        """Return the module's docstring, "" if it has none."""
        return ast.get_docstring(ast.parse(self.path.read_text(encoding="utf-8"))) or ""

    @property
    def summary(self) -> str:
        """Return the first line of the docstring."""
        return self.docstring.partition("\n")[0]

    @property
    def examples(self) -> list[list[str]]:
        """Return the words behind `anymodal` of each indented command line in the docstring."""
        text = self.docstring.replace("\\\n", " ")
        lines = [line for line in text.splitlines() if re.match(r"\s+anymodal\s", line)]
        return [self.split(line)[1:] for line in lines]

    @staticmethod
    def split(line: str) -> list[str]:
        """Return the words of a command line as a shell would, without its comment."""
        return shlex.split(line, comments=True)

    @property
    def command(self) -> str:
        """Return what a user types to run this program."""
        return f"anymodal {self.path.parent.name} {self.path.stem}" if _in_tree(self.path) else f"anymodal {self.path}"

    def load(self) -> ModuleType:
        """Import the file; it must define `main`."""
        name = f"anymodal_program_{self.path.parent.name}_{self.path.stem}"
        spec = importlib.util.spec_from_file_location(name, self.path)
        assert spec is not None and spec.loader is not None, f"{self.path} is a Python file"
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        if not callable(getattr(module, "main", None)):
            raise ValueError(f"a program must define main(), {self.path} does not; add it.")
        return module


def find_root() -> Path:
    """Return the folder that holds the programs and `configs/`: the checkout, or their copy in an installed package."""
    package = Path(__file__).resolve().parent
    installed = package / "programs"
    return installed if installed.is_dir() else package.parent


def list_programs(root: Path, folder: str) -> dict[str, Program]:
    """Return the programs of a folder by name."""
    return {path.stem: Program(path) for path in sorted((root / folder).glob("[!_]*.py"))}


def describe(root: Path, folders: Iterable[str] = FOLDERS) -> str:
    """Write the tree, one line a program; nothing is imported for it."""
    lines = ["usage: anymodal FOLDER PROGRAM [options]", "       anymodal FOLDER PROGRAM --help tells its options", ""]
    for folder in folders:
        programs = list_programs(root, folder)
        lines += [
            f"{folder}: {FOLDERS[folder]}",
            *(f"  {name:<12}{program.summary}" for name, program in programs.items()),
        ]
    return "\n".join(lines) + "\n"


def find_program(root: Path, words: Sequence[str]) -> tuple[Program, list[str]]:
    """Split a command line into the program that it names and the program's own arguments.

    Raises:
        ValueError: nothing has that name; the message holds the nearest one.
    """
    if words[0].endswith(".py"):
        if not Path(words[0]).is_file():
            raise ValueError(f"{words[0]} is no file; give the path of a program, or FOLDER PROGRAM.")
        return Program(Path(words[0])), list(words[1:])
    folder, name = check_folder(root, words[0]), words[1].replace("-", "_")
    programs = list_programs(root, folder)
    if name not in programs:
        raise ValueError(f"{folder} has no program {words[1]!r}; {nearest(name, programs)}")
    return programs[name], list(words[2:])


def check_folder(root: Path, word: str) -> str:
    """Return `word` if it names a folder of programs.

    Raises:
        ValueError: it does not; the message holds the nearest folder, or the program of that name.
    """
    if word in FOLDERS:
        return word
    homes = [folder for folder in FOLDERS if word.replace("-", "_") in list_programs(root, folder)]
    hint = f"did you mean '{homes[0]} {word}'?" if homes else nearest(word, FOLDERS)
    raise ValueError(f"anymodal has no folder {word!r}; {hint}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which of the known names is nearest to `name`, or all of them if none is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"there are: {', '.join(known)}." if known else "there are none."


def _in_tree(path: Path) -> bool:
    return path.parent.name in FOLDERS
