"""A conversation with a model: what was said is remembered, and not read again."""

from collections.abc import Iterator
from typing import Unpack

from PIL import Image

from anymodal.decoding.config import Options
from anymodal.decoding.engine import Engine
from anymodal.decoding.request import Ticket
from anymodal.decoding.sampler import evaluating
from anymodal.prompting import Prompter
from anymodal.streaming import Event, stream
from anymodal.tokens.document import Codes, Look, Part, Turn


class Chat:
    """Turns of a conversation; `Pipeline.chat` begins one.

    A picture that the model has drawn stands in its turn as codes. Where the model has an understanding path, it is
    looked at in the next message too, unless that brings pictures of its own.
    """

    def __init__(self, prompter: Prompter, engine: Engine) -> None:
        """Begin with nothing said; `engine` keeps what was read."""
        self.prompter, self.engine = prompter, engine
        self.turns: list[Turn] = []

    def say(self, *parts: Part, **options: Unpack[Options]) -> list[str | Image.Image]:
        """Say something, and return the parts of the answer.

        Raises:
            ValueError: the conversation does not fit the context; it stays as it was.
        """
        before = list(self.turns)
        ticket: Ticket | None = None
        try:
            ticket = self._ask(parts, options)
            with evaluating(self.engine.model):
                while not ticket.done:
                    self.engine.step()
            if ticket.error is not None:
                raise ticket.error
        except BaseException:
            self.turns = before
            if ticket is not None:
                self.engine.cancel(ticket)
            raise
        self._remember(ticket)
        return self.prompter.parts_of(ticket.ids)

    def stream(self, *parts: Part, rows: bool = True, **options: Unpack[Options]) -> Iterator[Event]:
        """Say something, and yield the answer as it comes; an answer that is not heard out is not remembered.

        Raises:
            ValueError: the conversation does not fit the context; it stays as it was.
        """
        before = list(self.turns)
        try:
            ticket = self._ask(parts, options)
            with evaluating(self.engine.model):
                yield from stream(self.engine, ticket, self.prompter, rows=rows)
        except BaseException:
            self.turns = before
            raise
        self._remember(ticket)

    def _ask(self, parts: tuple[Part, ...], options: Options) -> Ticket:
        drawn = [part for part in self.turns[-1].parts if isinstance(part, Codes)] if self.turns else []
        pictures = [part for part in parts if isinstance(part, Look | Codes | Image.Image)]
        if drawn and not pictures and self.prompter.model.config.understanding is not None:
            seen = [self.prompter.decode_picture(self.prompter.encode_picture(part.picture)) for part in drawn]
            parts = (*(Look(picture) for picture in seen), *parts)
        self.turns.append(Turn("user", tuple(self.prompter.resolve(parts))))
        return self.engine.submit(self.prompter.request(self.turns, options))

    def _remember(self, ticket: Ticket) -> None:
        said = [part.strip() if isinstance(part, str) else part for part in self.prompter.encoder.decode(ticket.ids)]
        self.turns.append(Turn("assistant", tuple(part for part in said if part != "")))
