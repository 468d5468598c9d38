"""Load the model folders that stdin names, each in a process of its own, and tell on stdout what came of it.

A line in: {"folder": ..., "allow_pickle": ..., "environment": {...}}. A line out: {"error", "message", "grown"}, where
`error` is None for a folder that was loaded, and `grown` the bytes that the process took beyond what it began with.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any

import diffusers.models.autoencoders.vae
import vector_quantize_pytorch

from anymodal.pipeline import from_pretrained

SECONDS = 60
ROOM = 2**33  # of addresses: what asks for more fails, before the machine does


def resident() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def attempt(request: Mapping[str, Any]) -> dict[str, Any]:
    os.environ.update(request["environment"])
    before = resident()
    outcome: dict[str, Any] = {"error": None, "message": ""}
    try:
        from_pretrained(request["folder"], device="cpu", allow_pickle=request["allow_pickle"])
    except BaseException as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    return {**outcome, "grown": resident() - before}


def apart(request: Mapping[str, Any]) -> dict[str, Any]:
    """Fork: a hang or a crash ends the child alone."""
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        with os.fdopen(reader) as file:
            said = file.read()
        _, status = os.waitpid(child, 0)
        ended = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {status}"
        found: dict[str, Any] = json.loads(said or json.dumps({"error": ended, "message": "", "grown": 0}))
        return found
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
    os.write(writer, json.dumps(attempt(request)).encode())
    os._exit(0)


if __name__ == "__main__":
    assert diffusers and vector_quantize_pytorch, "imported once, here, and not in every child"
    for line in sys.stdin:
        print(json.dumps(apart(json.loads(line))), flush=True)
