"""Hold the rules of the house: who imports whom, how large things are, where they stand, what is never written."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from anymodal.commands import FOLDERS, Program, list_programs
from anymodal.options import parse

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "anymodal").rglob("*.py"))
PROGRAMS = [program for folder in FOLDERS for program in list_programs(ROOT, folder).values()]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SOURCES = [*MODULES, *(path for folder in (*FOLDERS, "tests") for path in sorted((ROOT / folder).rglob("*.py")))]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

# room -> the rooms that it may import
ARROWS = {
    "configuration": set[str](),
    "commands": set[str](),
    "options": {"commands"},
    "__main__": {"commands", "options"},
    "tokens": {"configuration"},
    "data": {"configuration", "tokens"},
    "model": {"configuration", "tokens"},
    "published": {"configuration", "tokens", "model"},
    "decoding": {"configuration", "tokens", "model"},
    "learning": {"configuration", "tokens", "data", "model", "decoding"},
    "prompting": {"configuration", "tokens", "data", "model", "decoding"},
    "streaming": {"tokens", "decoding", "prompting"},
    "chat": {"tokens", "decoding", "prompting", "streaming"},
    "pipeline": {"configuration", "tokens", "data", "model", "published", "decoding", "prompting", "streaming", "chat"},
    "scoring": {"configuration", "tokens", "data", "model", "published", "decoding", "pipeline"},
    "serving": {"configuration", "tokens", "data", "model", "published", "decoding", "pipeline"},
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a file imports, at its top or within functions."""
    for node in ast.walk(read(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_run_one_way(path: Path) -> None:
    room = path.relative_to(ROOT / "anymodal").parts[0].removesuffix(".py")
    if room == "__init__":  # the public face hands out everything
        return
    assert room in ARROWS, f"{room} is a new room: say in ARROWS what it may import"
    for target in imports(path):
        top, _, rest = target.partition(".")
        if top == "anymodal" and rest != "__version__":
            other = rest.partition(".")[0]
            assert other in ARROWS[room] | {room}, f"{name(path)}: {room} may not import {target}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_of_programs_are_none(path: Path) -> None:
    for target in imports(path):
        assert target.partition(".")[0] not in {"train", "sample", "tests"}, f"{name(path)} imports {target}"
        assert not target.startswith("anymodal.programs"), f"{name(path)} imports {target}"


def test_program_folders_are_no_packages() -> None:
    assert [name(path) for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")] == []


def test_imports_of_light_modules_stay_light() -> None:
    light = [path for path in MODULES if path.stem == "__init__" or re.search(r"(^|_)config$", path.stem)]
    names = [name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in light]
    heavy = {"torch", "lightning", "diffusers", "numpy"}
    code = f"import sys, {', '.join(names)}\nprint(*({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [], "--help waits for what these modules import"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_size(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(read(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_library_does_not_print(path: Path) -> None:
    calls = [node for node in ast.walk(read(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert [node.lineno for node in calls if node.func.id == "print"] == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_module_has_a_mirrored_test(path: Path) -> None:
    if path.stem == "__init__" or re.search(r"(^|_)config$", path.stem):  # tested with what they configure
        return
    mirror = ROOT / "tests" / path.relative_to(ROOT / "anymodal").parent / f"test_{path.stem.strip('_')}.py"
    assert mirror.is_file(), f"{name(path)} needs {name(mirror)}"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: name(program.path))
def test_program_has_an_example_that_parses(program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert program.summary.endswith("."), "the first line is a sentence"
    assert program.examples, "a docstring holds an indented line: anymodal FOLDER PROGRAM --options"
    monkeypatch.chdir(tmp_path)
    for folder, command, *argv in program.examples:
        if (folder, command) == (program.path.parent.name, program.path.stem):
            parse(program, argv, ROOT)
    assert [program.path.parent.name, program.path.stem] in [words[:2] for words in program.examples]


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_config_tells_its_command_and_parses(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands = re.findall(r"^#\s+anymodal (\w+) (\w+) (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert commands, "the head comment holds: anymodal FOLDER PROGRAM --config ..."
    folder, program, words = commands[0]
    assert name(path) in words
    monkeypatch.chdir(tmp_path)
    parse(list_programs(ROOT, folder)[program], Program.split(words), ROOT)


def test_no_torchvision() -> None:
    assert importlib.util.find_spec("torchvision") is None, (
        "it breaks lightning, diffusers and transformers on CPU torch"
    )


def test_constraints_pin_the_dependencies() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {re.sub(r"[-_.]+", "-", line.partition("==")[0].lower()): line for line in lines if not line.startswith("#")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["test"], *extras["logs"], *extras["fast"]]
    assert {re.split(r"[\[<>=~!; ]", item)[0].lower() for item in wanted} <= set(pins)
    assert not {"torchvision", "huggingface-hub"} & set(pins)
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins.values()), "an exact version, never +cpu"


def test_packages_are_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    library = {name(path.parent).replace("/", ".") for path in MODULES if path.name == "__init__.py"}
    assert set(listed) == library | {f"anymodal.programs.{folder}" for folder in (*FOLDERS, "configs")}
    homeless = [name(path) for path in MODULES if not (path.parent / "__init__.py").is_file()]
    assert homeless == [], "a folder of the library has an __init__.py"


def test_no_path_or_host_of_one_machine() -> None:
    places = "|".join(("work", "root", "home", "Users", "opt", "tmp/work"))
    hosts = "|".join(re.escape(host) for host in ("pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org"))
    hosts += "|" + "|".join(re.escape(host) for host in ("download.pytorch" + ".org", "debian" + ".org"))
    forbidden = re.compile(rf"(?<![\w.~/}}-])/(?:{places})(?=/|[\s'\"`]|$)|{hosts}", re.MULTILINE)
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    run = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip("no git checkout: the tracked files are not known")
    for path in map(ROOT.joinpath, run.stdout.splitlines()):
        if not path.is_file():
            continue
        text = path.read_bytes()
        found = None if b"\0" in text else forbidden.search(text.decode("utf-8", errors="replace"))
        assert found is None, f"{name(path)} names {found[0]!r}" if found else ""


def test_pictures_stand_on_a_page_with_words_for_who_cannot_see_them() -> None:
    pages = [ROOT / "README.md", *(path for room in ("docs", "benchmarks") for path in (ROOT / room).glob("*.md"))]
    shown = {
        (page.parent / target).resolve(): words
        for page in pages
        for words, target in re.findall(r"!\[(.*?)\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    kept = [path for room in ("docs", "benchmarks") for path in (ROOT / room).iterdir()]
    for path in kept:
        if path.suffix in (".png", ".svg"):
            assert len(shown.get(path.resolve(), "").split()) > 2, f"{name(path)} needs a page, and an alt text"
