import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import anymodal
from anymodal.__main__ import main

Cli = Callable[..., subprocess.CompletedProcess[str]]

TOY = '''"""Fail as asked.

    anymodal train toy ValueError
"""

from anymodal.tokens.config import PictureLayout


def main(error: str, *, message: str = "it must hold; change it", layout: PictureLayout = PictureLayout()) -> None:
    """Fail.

    Args:
        error: Name of the exception.
    """
    if error == "none":
        print(f"fine: {message}")
    elif error == "missing":
        open("no such file")
    else:
        kinds = {"value": ValueError, "unicode": UnicodeError, "stop": KeyboardInterrupt, "bug": TypeError}
        raise kinds[error](message)
'''

GROUP = '''"""Know other processes, or none.

    anymodal train group store true
"""

import atexit
import os

import torch.distributed as dist


class Seen:
    def __del__(self, write=os.write):
        write(1, b"taken down\\n")


dist.seen = Seen()


def main(store: str, known: bool) -> int:
    """Join a group of one.

    Args:
        store: A file to meet at.
        known: Whether to join.
    """
    atexit.register(print, "at exit", flush=True)
    if known:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    return 3
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "toy.py").write_text(TOY)
    return tmp_path


def test_tree_is_listed(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], root=tree) == 0
    everything = capsys.readouterr().out
    assert main(["train", "--help"], root=tree) == 0
    folder = capsys.readouterr().out
    assert "  toy         Fail as asked." in folder
    assert "sample:" in everything
    assert "sample:" not in folder


def test_program_runs(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "toy", "none", "--message", "hello"], root=tree) == 0
    assert capsys.readouterr().out == "fine: hello\n"


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["train", "toy", "value"], 2, "anymodal: error: it must hold; change it\n"),
        (["train", "toy", "unicode"], 2, "anymodal: error: it must hold; change it\n"),
        (["train", "toy", "missing"], 2, "anymodal: error: No such file or directory: no such file\n"),
        (["train", "toy", "stop"], 130, "anymodal: interrupted\n"),
        (["trian"], 2, "anymodal: error: anymodal has no folder 'trian'; did you mean train?\n"),
        (["train", "toy", "x", "--mesage", "x"], 2, "no option --mesage; did you mean --message?\n"),
    ],
)
def test_mistakes_have_no_traceback(
    tree: Path, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, said: str
) -> None:
    assert main(argv, root=tree) == code
    streams = capsys.readouterr()
    assert streams.err.endswith(said)
    assert streams.err.count("\n") == 1
    assert streams.out == ""


def test_traceback_on_request(tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYMODAL_TRACEBACK", "1")
    assert main(["train", "toy", "value"], root=tree) == 2
    assert 'toy.py", line' in capsys.readouterr().err


def test_own_bugs_keep_their_traceback(tree: Path) -> None:
    with pytest.raises(TypeError):
        main(["train", "toy", "bug"], root=tree)


def test_module_runs_from_another_folder(cli: Cli) -> None:
    assert cli("--version").stdout == f"anymodal {anymodal.__version__}\n"
    failed = cli("trian")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "Traceback" not in failed.stderr


def test_a_process_that_knows_others_ends_without_taking_the_interpreter_down(tree: Path) -> None:
    (tree / "train" / "group.py").write_text(GROUP)
    script = "import sys; from pathlib import Path; from anymodal import __main__ as it\n"
    script += f"it.find_root = lambda: Path({str(tree)!r}); it.as_process()"
    command = [sys.executable, "-c", script, "train", "group", str(tree / "store")]
    alone = subprocess.run([*command, "false"], capture_output=True, text=True)
    assert (alone.returncode, alone.stdout) == (3, "at exit\ntaken down\n"), alone.stderr
    known = subprocess.run([*command, "true"], capture_output=True, text=True)
    assert (known.returncode, known.stdout) == (3, "at exit\n"), known.stderr


def test_closed_pipe_is_silent(root: Path) -> None:
    command = f"{sys.executable} -m anymodal | head -c 1"
    env = {**os.environ, "PYTHONPATH": str(root)}
    assert subprocess.run(command, shell=True, env=env, capture_output=True, check=False).stderr == b""


def test_help_imports_nothing_heavy(tree: Path, root: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from anymodal.__main__ import main\n"
        f"try: main(['train', 'toy', '--help'], root=Path({str(tree)!r}))\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'lightning', 'diffusers', 'rich', 'tokenizers', 'webdataset'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 2.0, f"half a second on an idle core; the best of three was {min(times):.2f} s"


def test_public_names_are_lazy_and_complete() -> None:
    assert set(anymodal.__all__) <= set(dir(anymodal))
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        anymodal.__getattr__("Nothing")


@pytest.mark.parametrize("name", [name for name in anymodal.__all__ if name != "__version__"])
def test_public_name_is_there(name: str) -> None:
    value = getattr(anymodal, name)
    assert value is getattr(importlib.import_module(value.__module__), name)
