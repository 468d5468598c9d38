"""Run the command line: `anymodal FOLDER PROGRAM --options`."""

import atexit
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from anymodal import __version__
from anymodal.commands import check_folder, describe, find_program, find_root
from anymodal.options import parse

_HELP = ("-h", "--help", "help")
_MISTAKE, _INTERRUPTED, _BROKEN_PIPE = 2, 130, 141


def run(argv: Sequence[str], root: Path) -> int:
    """Run the program that `argv` names, or write the part of the tree that it names; return the exit code."""
    words = [word for word in argv[:2] if word not in _HELP]
    if argv[:1] == ["--version"]:
        sys.stdout.write(f"anymodal {__version__}\n")
    elif not words:
        sys.stdout.write(describe(root))
    elif len(words) == 1 and not words[0].endswith(".py"):
        sys.stdout.write(describe(root, [check_folder(root, words[0])]))
    else:
        program, rest = find_program(root, argv)
        main, arguments = parse(program, rest, root)
        _log_to_stderr()
        return int(main(**arguments) or 0)
    return 0


def _log_to_stderr() -> None:
    """Show what the package tells while it works; standard output is for results."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("anymodal")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def main(argv: Sequence[str] | None = None, root: Path | None = None) -> int:
    """Run a command line and return its exit code: 0, 2 for a user's mistake, 130 for Ctrl-C.

    With `ANYMODAL_TRACEBACK=1` in the environment, where a mistake was found is written too.
    """
    try:
        code = run(sys.argv[1:] if argv is None else list(argv), root or find_root())
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (`| head`) has left: nothing to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except (ValueError, OSError) as error:
        if os.environ.get("ANYMODAL_TRACEBACK") == "1":
            traceback.print_exc()
        sys.stderr.write(f"anymodal: error: {_explain(error)}\n")
        return _MISTAKE
    except KeyboardInterrupt:
        sys.stderr.write("anymodal: interrupted\n")
        return _INTERRUPTED
    return code


def as_process() -> NoReturn:
    """Run the command line as a process of its own, and end it.

    One that knows others ends without taking the interpreter down: a thread of gloo may let go of its last message
    late, needs the interpreter for that, and aborts where it is gone (exit code 134 after a run that succeeded).
    """
    code = main()
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _explain(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{error.strerror}: {' -> '.join(names)}" if names else error.strerror
    return str(error) or type(error).__name__


if __name__ == "__main__":
    as_process()
