"""Run the command lines that stdin names, each in a process group of its own, and harm them as asked.

A line in: {"words": [...], "fault": {...}, "diary": path or ""}. A line out: {"code", "log", "seconds", "left"}: the
exit code (negative: the signal that ended it), what was written, how long it took, and whether processes outlived it.
The process that forks holds every module that a run imports, and no thread: a run begins in no time.
"""

import atexit
import gc
import hashlib
import importlib
import json
import multiprocessing
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import lightning.pytorch as pl
import torch

from anymodal.__main__ import main
from anymodal.learning import callbacks, fitting
from anymodal.learning.objective import Objective

SECONDS = 100
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


class Harm(pl.Callback):
    """Do what `fault` says when that many steps have been made, at once where that is less than none."""

    def __init__(self, fault: Mapping[str, Any], ready: int) -> None:
        self.fault, self.ready = fault, ready
        self.steps, self.left = int(fault["after"]), int(fault.get("number", 0))

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.steps == 0:
            getattr(self, self.fault["kind"])()
        self.steps -= 1

    def kill(self) -> None:
        """Let the parent kill the group in a while, wherever it is then."""
        os.write(self.ready, b"!")

    def kill_in_file(self) -> None:
        """Die of the first write behind so many bytes of a file."""
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        self.fill()

    def kill_at_operation(self) -> None:
        """Kill the group just before the so-many-th file of the run is opened, renamed or removed."""
        sys.addaudithook(self._count)

    def _count(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and self.fault["folder"] in str(arguments[0]):
            self.left -= 1
            if self.left < 0:
                os.killpg(0, signal.SIGKILL)

    def fill(self) -> None:
        """Let no file grow beyond so many bytes, as on a full disk."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.fault["bytes"], resource.RLIM_INFINITY))

    def tell(self) -> None:
        """Send a signal to this process."""
        os.kill(os.getpid(), self.fault["signal"])

    def tell_all(self) -> None:
        """Send a signal to this process and its workers, as a terminal or a cluster does."""
        os.killpg(0, self.fault["signal"])

    def harm_worker(self) -> None:
        """Send a signal to a process that prepares batches."""
        os.kill(int(multiprocessing.active_children()[0].pid or 0), self.fault["signal"])


class Diary(pl.Callback):
    """Write down what every step was given: the ids of its documents, if it has any, and a digest of all tensors."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, number: int) -> None:
        pictures = isinstance(batch, torch.Tensor)
        batch = batch if pictures else batch.host
        held = [batch] if pictures else [each for each in vars(batch).values() if each is not None]
        digest = hashlib.sha256(b"".join(each.numpy().tobytes() for each in held)).hexdigest()[:16]
        count = 0 if pictures else int(batch.documents.max()) + 1
        documents = [batch.ids[batch.documents == i].tolist() for i in range(count)]
        line = {"step": trainer.global_step, "digest": digest, "documents": documents}
        os.write(self.file, json.dumps(line).encode() + b"\n")


def spoil(fault: Mapping[str, Any]) -> None:
    """Make the loss of some steps, or only the gradient that comes of it, infinite or no number."""
    value = float(fault["value"])

    def backward(objective: Objective, loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        bad = objective.global_step in fault["steps"]
        (loss * value if bad and fault["where"] == "loss" else loss).backward(*arguments, **options)
        if bad and fault["where"] == "gradient":
            gradients = [each.grad for each in objective.parameters() if each.grad is not None]
            gradients[0].view(-1)[0] = value

    Objective.backward = cast(Any, backward)  # type: ignore[method-assign]


def run(request: Mapping[str, Any], ready: int) -> int:
    callbacks_for, fault = callbacks.callbacks_for, request["fault"]
    added: list[pl.Callback] = [Diary(request["diary"])] if request["diary"] else []
    if "after" in fault:
        added.append(harm := Harm(fault, ready))
        if fault["after"] < 0:
            getattr(harm, fault["kind"])()
    if "steps" in fault:
        spoil(fault)

    def with_harm(*arguments: Any, **options: Any) -> list[pl.Callback]:
        first, *others = callbacks_for(*arguments, **options)
        return [first, *added, *others]

    cast(Any, fitting).callbacks_for = with_harm
    return main(request["words"])


def apart(request: Mapping[str, Any]) -> dict[str, Any]:
    """Fork a group of processes that run a command line, and see it end."""
    reader, writer = os.pipe()
    log = tempfile.TemporaryFile()  # noqa: SIM115  (the child goes on with it)
    start = time.monotonic()
    if not (child := os.fork()):
        os.close(reader)
        os.setpgid(0, 0)
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        end(run(request, writer))
    os.close(writer)
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if select.select([reader], [], [], 0.01)[0] and os.read(reader, 1):
            time.sleep(request["fault"]["delay_s"])
            kill_group(child)
        if time.monotonic() - start > SECONDS:
            kill_group(child)
    code = os.waitstatus_to_exitcode(ended[1])
    seconds = time.monotonic() - start
    if code < 0:
        kill_group(child)
    left = not select.select([reader], [], [], 10)[0]  # closed when the last process of the group has ended
    if left:
        kill_group(child)
    os.close(reader)
    log.seek(0)
    said = log.read().decode(errors="replace")
    log.close()
    return {"code": code, "log": said, "seconds": seconds, "left": left}


def end(code: int) -> None:
    """Leave as an interpreter does, but for the seconds in which it takes every module apart."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def kill_group(child: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def modules_of(request: Mapping[str, Any]) -> list[str]:
    """Run a command line and tell which modules it imported, without a trace in this process."""
    reader, writer = os.pipe()
    if not os.fork():
        os.dup2(2, 1)
        main(request["words"])
        os.write(writer, "\n".join(sys.modules).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        return file.read().split("\n")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for line in sys.stdin:
        asked = json.loads(line)
        if "warm" in asked:
            for name in modules_of(asked):
                with suppress(Exception):
                    importlib.import_module(name)
            gc.freeze()  # what all runs share stays shared
        print(json.dumps(apart(asked) if "fault" in asked else {}), flush=True)
