"""The sampler: what requests ask for, all at once."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor, nn

from anymodal.decoding.config import EngineConfig
from anymodal.decoding.engine import Engine
from anymodal.decoding.request import Request
from anymodal.decoding.usage import Usage
from anymodal.model.unified import AnyModal


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Let a module that trains evaluate; telling all its parts would take as long as a step of a small model."""
    training = module.training
    if training:
        module.eval()
    try:
        yield
    finally:
        if training:
            module.train()


Weights = tuple[tuple[torch.dtype, int], ...]


def weights_of(model: nn.Module) -> Weights:
    """Tell where the weights of a model lie, and as what: what is compiled or captured reads them there."""
    return tuple((each.dtype, each.data_ptr()) for each in model.parameters())


class Sampler:
    """Write what requests ask for with one model; `usage` tells what the last call cost.

    The ids of a row depend on its request alone: see `Engine`.
    """

    def __init__(self, model: AnyModal, config: EngineConfig | None = None) -> None:
        """Sample from `model`."""
        self.model, self.config = model, config or EngineConfig()
        self.usage = Usage(tokens=0, seconds=0.0)
        self._kept: tuple[Engine, Weights] | None = None

    def generate(
        self, requests: Sequence[Request], on_step: Callable[[int], None] | None = None
    ) -> list[Int[Tensor, " n"]]:
        """Return the new ids of every request.

        Raises:
            ValueError: a prompt with what follows it does not fit the context.
            SamplingError: the logits of a row are unusable; the other rows were finished.
        """
        with evaluating(self.model):
            engine, start = self._engine(), time.perf_counter()
            tickets = [engine.submit(request) for request in requests]
            step, before = 0, engine.passes
            while not engine.idle:
                engine.step()
                if on_step is not None:
                    on_step(step)
                step += 1
            seconds = time.perf_counter() - start
            self.usage = Usage.of(tickets, seconds=seconds, passes=engine.passes - before)
            if self.config.compile and self.model.transformer.stack is None:
                self._kept = engine, weights_of(self.model)
        for ticket in tickets:
            if ticket.error is not None:
                raise ticket.error
        return [ticket.ids for ticket in tickets]

    def _engine(self) -> Engine:
        """Return an idle engine: the last one, where what it has compiled or captured would have to be made again."""
        kept, self._kept = self._kept, None
        if kept is not None and kept[1] == weights_of(self.model):
            return kept[0]
        return Engine(self.model, self.config)
