"""How a training step passes the blocks of the transformer: as they are, compiled, or computed again backwards."""

from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anymodal.learning.config import RunConfig
from anymodal.model.cache import CacheStep
from anymodal.model.transformer import Block, Segments, Through

BACKEND = "inductor"


def through_of(run: RunConfig) -> Through | None:
    """Return how a run passes a block; None where it calls the block and nothing else.

    Raises:
        ValueError: blocks are to be compiled and there is no compiler.
    """
    if not (run.compile or run.checkpoint_activations):
        return None
    through: Through = _through
    if run.compile:
        _check_compiler()
        through = cast(Through, torch.compile(_through, dynamic=True, backend=BACKEND))
    if run.checkpoint_activations:
        through = cast(Through, partial(checkpoint, through, use_reentrant=False))
    return through


def _through(block: Block, x: Tensor, rotary: Tensor, context: Segments | CacheStep | None) -> Tensor:
    return cast(Tensor, block(x, rotary, context))


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415 (imports a compiler)
    from torch._inductor.exc import InvalidCxxCompiler  # noqa: PLC0415

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "run.compile needs a C++ compiler, and torch finds none; install g++ (or name yours in the environment "
            "variable CXX), or leave run.compile out."
        ) from error
