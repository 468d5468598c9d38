"""Documents of text and pictures, edited and continued: many at once give what each gives alone."""

from typing import Any

import pytest
import torch
from PIL import Image

from anymodal.data.emoji import picture
from anymodal.decoding.config import EngineConfig
from anymodal.pipeline import Pipeline
from anymodal.tokens.document import Codes, Document, Look, Turn

DOG, CAT, HARE = (picture(name).convert("RGB") for name in ("dog", "cat", "rabbit"))
DOCUMENTS: list[Document] = [
    [DOG, "The same, but blue:"],
    ["From", DOG, "and", CAT, "make one picture that shows both of them:"],
    [Codes(HARE), "as codes, then looked at", Look(HARE), Look(DOG), "again:"],
    ["a dog"],
    [Turn("user", (CAT, "What is this?")), Turn("assistant", ("a cat",)), Turn("user", ("Draw it.", DOG, HARE))],
    [DOG, "The same, but blue:"],
]
WAYS: list[tuple[dict[str, Any], EngineConfig]] = [
    ({"heads": "decoupled"}, EngineConfig(max_rows=5, prefill_tokens=7)),
    ({"heads": "shared"}, EngineConfig()),
    ({"heads": "shared", "understanding": None}, EngineConfig(speculation="jacobi", window=6, max_rows=12)),
]


def make_pipeline(toy: Any, engine: EngineConfig, **changes: Any) -> Pipeline:
    """Make an untrained model in float64 that likes to begin pictures."""
    parts = toy.parts(**changes)
    torch.manual_seed(5)
    for parameter in parts.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        parts.model.head.weight[parts.model.vocabulary.special("boi")] *= 16
    parts.model.double()
    return Pipeline(parts, engine)


def seen(parts: list[str | Image.Image]) -> list[str | bytes]:
    return [part.tobytes() if isinstance(part, Image.Image) else part for part in parts]


@pytest.mark.parametrize(("changes", "engine"), WAYS, ids=["decoupled", "shared", "codes"])
def test_edits_in_a_batch_are_those_alone(toy: Any, changes: dict[str, Any], engine: EngineConfig) -> None:
    pipe, plain = make_pipeline(toy, engine, **changes), make_pipeline(toy, EngineConfig(), **changes)
    for how in ({}, {"guidance_scale": 2.0}, {"guidance_scale": 3.0, "image_guidance_scale": 1.4, "top_k": 9}):
        options: dict[str, Any] = {"want": "image", "seed": 5, "temperature": 1.3, **how}
        edited = [seen(parts) for parts in pipe.generate_batch(DOCUMENTS, **options)]
        assert edited == [seen(plain.generate(document, **options)) for document in DOCUMENTS]
        assert edited[0] == edited[-1]
        assert len({each[0] for each in edited}) >= len(DOCUMENTS) - 2, "what is shown and said matters"


@pytest.mark.parametrize(("changes", "engine"), WAYS, ids=["decoupled", "shared", "codes"])
def test_documents_in_a_batch_are_those_alone(toy: Any, changes: dict[str, Any], engine: EngineConfig) -> None:
    pipe, plain = make_pipeline(toy, engine, **changes), make_pipeline(toy, EngineConfig(), **changes)
    options: dict[str, Any] = {
        "want": "any", "seed": 3, "temperature": 1.5, "max_new_tokens": 12, "max_images": 2, "guidance_scale": 2.0,
        "image_guidance_scale": 1.3,
    }  # fmt: skip
    written = [seen(parts) for parts in pipe.generate_batch(DOCUMENTS, **options)]
    assert written == [seen(plain.generate(document, **options)) for document in DOCUMENTS]
    pictures = [sum(isinstance(part, bytes) for part in parts) for parts in written]
    assert max(pictures) == 2
    assert any(isinstance(part, str) for parts in written for part in parts)
