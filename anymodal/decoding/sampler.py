"""The sampler: what requests ask for, all at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from jaxtyping import Int
from torch import Tensor, nn

from anymodal.decoding.config import EngineConfig
from anymodal.decoding.engine import Engine
from anymodal.decoding.request import Request
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


class Sampler:
    """Write what requests ask for with one model.

    The ids of a row depend on its request alone: see `Engine`.
    """

    def __init__(self, model: AnyModal, config: EngineConfig | None = None) -> None:
        """Sample from `model`."""
        self.model, self.config = model, config or EngineConfig()
        self.passes = 0

    def generate(
        self, requests: Sequence[Request], on_step: Callable[[int], None] | None = None
    ) -> list[Int[Tensor, " n"]]:
        """Return the new ids of every request.

        Raises:
            ValueError: a prompt with what follows it does not fit the context.
            SamplingError: the logits of a row are unusable; the other rows were finished.
        """
        with evaluating(self.model):
            engine = Engine(self.model, self.config)
            tickets = [engine.submit(request) for request in requests]
            step = 0
            while not engine.idle:
                engine.step()
                if on_step is not None:
                    on_step(step)
                step += 1
            self.passes = engine.passes
        for ticket in tickets:
            if ticket.error is not None:
                raise ticket.error
        return [ticket.ids for ticket in tickets]
