"""What a model writes while it writes: pieces of text, and pictures that grow by rows."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from anymodal.decoding.engine import Engine
from anymodal.decoding.request import Request, Ticket
from anymodal.prompting import Prompter

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
BLANK = (128, 128, 128)


@dataclass(frozen=True)
class TextPiece:
    """Text that follows what came before.

    >>> TextPiece("a dog").text
    'a dog'
    """

    text: str


@dataclass(frozen=True)
class PictureRows:
    """A picture of which so many of its rows of codes are drawn; what is missing is grey.

    >>> PictureRows(Image.new("RGB", (8, 8)), rows=2, num_rows=2).done
    True
    """

    image: Image.Image
    rows: int
    num_rows: int

    @property
    def done(self) -> bool:
        """Is the picture whole."""
        return self.rows == self.num_rows


Event = TextPiece | PictureRows


def stream(engine: Engine, ticket: Ticket, prompter: Prompter, *, rows: bool = True) -> Iterator[Event]:
    """Yield what a request writes, and its pictures by rows unless `rows` is false; closing the iterator cancels it.

    Pictures are decoded beside the sampler, one at a time: where that is slower than drawing, rows come together.

    Raises:
        SamplingError: the logits of the request's row are unusable.
    """
    told = _Progress(prompter, ticket.request, rows=rows)
    try:
        while not ticket.done:
            engine.step()
            yield from told.read(ticket.written)
        if ticket.error is not None:
            raise ticket.error
        yield from told.close()
    finally:
        engine.cancel(ticket)
        told.painter.shutdown(cancel_futures=True)


class _Progress:
    """Turn growing ids into events."""

    def __init__(self, prompter: Prompter, request: Request, *, rows: bool) -> None:
        self.prompter, self.rows, self.drawing, self.longest = prompter, rows, request.bounded, request.longest
        self.painter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="painter")
        self.painting: Future[PictureRows] | None = None
        self.painted = 0
        vocabulary = prompter.vocabulary
        self.names = {index: name for name, index in vocabulary.specials.items()}
        self.code_of: list[int] = prompter.model.code_of.tolist()
        self.seen = 0
        self.text: list[int] = []
        self.told = ""
        self.codes: list[int] = []
        self.columns = 0

    def read(self, ids: list[int]) -> Iterator[Event]:
        """Take in what is new."""
        for index in ids[self.seen :]:
            self.seen += 1
            yield from self._read(index, self.names.get(index))
        if self.painting is not None and self.painting.done():
            yield from self._finish_painting()

    def close(self) -> Iterator[Event]:
        """Tell what is left."""
        yield from self._finish_painting()
        yield from self._tell(last=True)

    def _read(self, index: int, name: str | None) -> Iterator[Event]:
        if name == "boi":
            yield from self._tell(last=True)
            self.drawing = True
        elif name == "eoi":
            yield from self._finish_painting()
            yield self._paint(self.codes, len(self.codes) // self.columns)
            self.drawing, self.codes, self.columns, self.painted = False, [], 0, 0
        elif self.code_of[index] >= 0:
            self.codes.append(self.code_of[index])
            self._grow()
        elif name == "eol" and not self.columns:
            self.columns = len(self.codes)
            self._grow()
        elif name is None and not self.drawing:
            self.text.append(index)
            yield from self._tell(last=False)

    def _grow(self) -> None:
        """Paint the rows that are finished, unless the painter is at work."""
        layout = self.prompter.parts.layout
        if not self.columns and layout.kind == "fixed":
            self.columns = layout.sizes[0][1]
        finished = len(self.codes) // self.columns if self.columns else 0
        if not self.rows or self.painting is not None or finished <= self.painted:
            return
        row = self.columns + (layout.kind == "rows")  # and an end of line
        fits = [rows for rows, columns in layout.sizes if columns == self.columns and rows * row < self.longest]
        tallest = max(fits, default=finished)
        self.painted = finished
        if finished < tallest:
            self.painting = self.painter.submit(self._paint, self.codes[: finished * self.columns], tallest)

    @torch.inference_mode()
    def _paint(self, codes: list[int], num_rows: int) -> PictureRows:
        grid: Int[Tensor, "rows columns"] = torch.tensor(codes).view(-1, self.columns)
        image = self.prompter.decode_picture(grid)
        if len(grid) < num_rows:
            whole = Image.new("RGB", (image.width, image.height // len(grid) * num_rows), BLANK)
            whole.paste(image)
            image = whole
        return PictureRows(image, rows=len(grid), num_rows=num_rows)

    def _finish_painting(self) -> Iterator[Event]:
        painting, self.painting = self.painting, None
        if painting is not None:
            yield painting.result()

    def _tell(self, *, last: bool) -> Iterator[Event]:
        """Tell text as far as later ids cannot change it: no half characters, no blanks that may end it."""
        text = self.prompter.text_tokenizer.decode(self.text).lstrip()
        whole = text.rstrip() if last else text.rstrip(UNKNOWN).rstrip()
        if len(whole) > len(self.told):
            yield TextPiece(whole[len(self.told) :])
            self.told = whole
        if last:
            self.text, self.told = [], ""
