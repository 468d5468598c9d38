"""A step in pieces and on many processes, with the losses and the gradient that all have together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from anymodal.learning.code_noise import Drawn
from anymodal.learning.distributed import max_over_ranks, sum_over_ranks
from anymodal.model.layout import Layout
from anymodal.model.loss import TokenLoss
from anymodal.tokens.batch import IGNORE, Batch, moved


@dataclass(frozen=True)
class StepBatch:
    """A batch on its device, in pieces, beside what shapes depend on: a step that has it asks the device nothing.

    `counts` are the targets of this process, of text and of codes; `drawn` is there where codes are read with noise.
    """

    host: Batch
    pieces: tuple[Batch, ...]
    layouts: tuple[Layout, ...]
    counts: Int[Tensor, "2"]
    drawn: Drawn | None

    @classmethod
    def of(
        cls,
        batch: Batch,
        code_of: Int[Tensor, " v"],
        *,
        device: torch.device,
        accumulate: int = 1,
        exactly: bool = False,
        noise: bool = False,
    ) -> "StepBatch":
        """Cut a batch that is on the host into pieces, and move them to `device`.

        Processes that share weights wait for each other in every pass: then there must be `exactly` so many pieces in
        each, and those that no row is left for are the first once more, without targets.
        """
        pieces = split_rows(batch, accumulate)
        if exactly:
            silent = replace(pieces[0], targets=torch.full_like(pieces[0].targets, IGNORE))
            pieces += [silent] * (accumulate - len(pieces))
        layouts = [Layout.of(piece, code_of) for piece in pieces]
        counts = torch.tensor([sum(len(each.text) for each in layouts), sum(len(each.image) for each in layouts)])
        drawn = Drawn.of(batch, code_of) if noise else None
        return cls(
            host=batch,
            pieces=tuple(piece.to(device) for piece in pieces),
            layouts=tuple(layout.to(device) for layout in layouts),
            counts=moved(counts, device),
            drawn=None if drawn is None else drawn.to(device),
        )


def split_rows(batch: Batch, count: int) -> list[Batch]:
    """Cut a batch into `count` pieces of nearly as many rows each, or into its rows where it has fewer.

    >>> ids = torch.zeros(3, 4, dtype=torch.long)
    >>> [len(piece.ids) for piece in split_rows(Batch(ids=ids, targets=ids, positions=ids), 2)]
    [2, 1]
    """
    num_rows, length = batch.ids.shape
    pieces = []
    for rows in torch.arange(num_rows).tensor_split(min(count, num_rows)):
        start, end = int(rows[0]), int(rows[-1]) + 1
        piece = replace(
            batch,
            ids=batch.ids[start:end],
            targets=batch.targets[start:end],
            positions=batch.positions[start:end],
            documents=None if batch.documents is None else batch.documents[start:end],
            look_pixels=None,
            look_index=None,
        )
        if batch.look_pixels is not None and batch.look_index is not None:
            row = batch.look_index[:, 0] // length
            inside = (row >= start) & (row < end)
            if bool(inside.any()):
                index = batch.look_index[inside] - start * length
                piece = replace(piece, look_pixels=batch.look_pixels[inside], look_index=index)
        pieces.append(piece)
    return pieces


def add_up(losses: Sequence[dict[str, TokenLoss]]) -> dict[str, TokenLoss]:
    """Return what the pieces of a step come to, by modality, without their graphs."""

    def column(name: str, field: str) -> Tensor:
        return torch.stack([getattr(piece[name], field).detach() for piece in losses])

    return {
        name: TokenLoss(
            total=column(name, "total").sum(),
            nats=column(name, "nats").sum(),
            count=column(name, "count").sum(),
            correct=column(name, "correct").sum(),
            max_logit=column(name, "max_logit").max(),
        )
        for name in losses[0]
    }


def over_ranks(loss: TokenLoss) -> TokenLoss:
    """Return what the losses of all processes come to, without their graphs, on the host."""
    sums = torch.stack([each.detach().double() for each in (loss.total, loss.nats, loss.count, loss.correct)])
    total, nats, count, correct = sum_over_ranks(sums).cpu().unbind()
    kind = loss.total.dtype
    return TokenLoss(
        total=total.to(kind),
        nats=nats.to(kind),
        count=count.long(),
        correct=correct.long(),
        max_logit=max_over_ranks(loss.max_logit.detach()).cpu(),
    )
