"""What a stage trains: named parts of the model, each at its rate, and nothing that no loss reaches."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager

from anymodal.learning.config import StageConfig
from anymodal.learning.optimizer import RowsOf, Trained
from anymodal.model.config import AnyModalConfig
from anymodal.model.parts import Piece, parts_of
from anymodal.model.unified import AnyModal


def trained_of(model: AnyModal, stage: StageConfig) -> list[Trained]:
    """Return the parameters that a stage trains, in the model's order; a matrix all of whose rows learn alike is whole.

    Raises:
        ValueError: the stage names a part that the model lacks or that no loss reaches.
    """
    parts = parts_of(model)
    for name in (*stage.trains, *stage.rates):
        if name not in parts:
            near = difflib.get_close_matches(name, parts, n=1)
            hint = f"did you mean {near[0]!r}? It" if near else "it"
            raise ValueError(
                f"a stage trains parts of its model, which has no {name!r}; {hint} has {', '.join(parts)}."
            )
    _check_reach(model.config, stage)
    learning = {piece: stage.rates.get(part, 1.0) for part in stage.trains or parts for piece in parts[part]}
    pieces: dict[str, list[Piece]] = {}
    for piece in (piece for part in parts.values() for piece in part):
        pieces.setdefault(piece.name, []).append(piece)
    trained = []
    for name, parameter in model.named_parameters():
        rates = {learning.get(piece) for piece in pieces[name]}
        if len(rates) == 1:
            trained += [Trained(name, parameter, rate) for rate in rates if rate is not None]
            continue
        for piece in pieces[name]:
            if piece in learning and piece.end is not None:
                trained.append(Trained(name, RowsOf(parameter, piece.start, piece.end), learning[piece]))
    return trained


@contextmanager
def only_training(model: AnyModal, stage: StageConfig) -> Iterator[None]:
    """Let gradients flow to what a stage trains and to nothing else, as long as it lasts.

    Raises:
        ValueError: the stage names a part that the model lacks or that no loss reaches.
    """
    names = {each.name for each in trained_of(model, stage)}
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


def reached_by(config: AnyModalConfig, stage: StageConfig) -> set[str]:
    """Return the parts that a gradient of the stage's losses can reach; every task ends in text ids."""
    ratios = stage.ratios
    draws = ratios.draw + ratios.chat > 0
    writes, paints = stage.text_weight > 0, stage.image_weight > 0 and draws
    if not (writes or paints):
        return set()
    looks = ratios.chat + (ratios.answer + ratios.describe if writes else 0.0) > 0
    shared = config.heads == "shared"  # one softmax over the rows of both
    reached = {
        "text_head": writes or shared,
        "image_head": paints or shared,
        "image_embedding": draws or (looks and config.understanding is None) or (shared and config.tie_embeddings),
        "connector": looks,
        "understanding": looks,
        "place_embedding": draws or looks,
    }
    return {"transformer", "text_embedding", *(part for part, holds in reached.items() if holds)}


def _check_reach(config: AnyModalConfig, stage: StageConfig) -> None:
    reached = reached_by(config, stage)
    idle = [part for part in stage.trains if part not in reached]
    if reached and not idle:
        return
    raise ValueError(
        f"a stage must train what its losses reach, but with {stage.ratios}, text_weight {stage.text_weight} and "
        f"image_weight {stage.image_weight} none reaches {', '.join(idle) or 'anything'}; "
        "give a task that needs it a share, or leave it out."
    )
