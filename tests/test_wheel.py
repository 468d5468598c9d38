import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from anymodal.commands import FOLDERS, list_programs

PARTS = ("anymodal", *FOLDERS, "configs", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")  # a build leaves its traces beside the sources
    for part in PARTS:
        path = root / part
        if path.is_dir():
            shutil.copytree(path, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / part)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(source / "dist"),
        str(source),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def home(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel alone; the packages that it needs are those of the running one."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, env=clean_environment())
    site = sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)})
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # behind the wheel on the path
    return home


def clean_environment() -> dict[str, str]:
    """Where PYTHONPATH names a checkout, pip takes its package for installed."""
    return {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}


def run(home: Path, program: str, *words: str, cwd: Path) -> str:
    command = [str(home / "bin" / program), *words]
    result = subprocess.run(command, cwd=cwd, env=clean_environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_wheel_holds_programs_types_and_licences(wheel: Path, root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "anymodal/py.typed" in names
    assert {Path(name).name for name in names if "dist-info/licenses/" in name} == {"LICENSE", "NOTICE"}
    for folder in FOLDERS:
        assert {f"anymodal/programs/{folder}/{name}.py" for name in list_programs(root, folder)} <= names
    assert {f"anymodal/programs/{path.relative_to(root)}" for path in (root / "configs").rglob("*.yaml")} <= names
    assets = [path for path in (root / "anymodal").rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}]
    assert {path.relative_to(root).as_posix() for path in assets} <= names
    assert not [name for name in names if name.startswith(("tests/", "train/", "sample/", "tokenizers/"))]


def test_installed_command_is_the_wheels(home: Path, tmp_path: Path) -> None:
    where = run(home, "python", "-c", "import anymodal; print(anymodal.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(home)


def test_installed_tree_is_the_checkouts(home: Path, root: Path, tmp_path: Path) -> None:
    listing = run(home, "anymodal", cwd=tmp_path)
    for folder in FOLDERS:
        for name, program in list_programs(root, folder).items():
            assert f"  {name:<12}{program.summary}\n" in listing
            assert program.command in run(home, "anymodal", folder, name, "--help", cwd=tmp_path)


def test_shipped_model_draws_from_another_folder(home: Path, tmp_path: Path) -> None:
    run(home, "anymodal", "sample", "image", "a rabbit", "--out", "drawn", cwd=tmp_path)
    assert [path for path in (tmp_path / "drawn").rglob("*") if path.suffix in {".png", ".webp", ".jpg"}]
