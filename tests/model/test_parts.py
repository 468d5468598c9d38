from typing import Any, Literal

import pytest
import torch

from anymodal.model.config import AnyModalConfig, TransformerConfig, UnderstandingConfig
from anymodal.model.parts import owner_of, parts_of
from anymodal.model.unified import AnyModal
from anymodal.tokens.vocabulary import Vocabulary

TRANSFORMER = TransformerConfig(dim=8, depth=1, num_heads=1, num_kv_heads=1, head_dim=8, hidden_dim=8)
UNDERSTANDING = UnderstandingConfig(image_size=8, patch_size=4, dim=8, depth=1, num_heads=1, hidden_dim=8)
VOCABULARY = Vocabulary.build(text_size=12, specials={"pad": 0, "boi": 1}, codebook_size=6)


def make(vocabulary: Vocabulary = VOCABULARY, **changes: Any) -> AnyModal:
    return AnyModal(AnyModalConfig(transformer=TRANSFORMER, **changes), vocabulary)


@pytest.mark.parametrize("heads", ["shared", "decoupled"])
@pytest.mark.parametrize("understanding", [None, UNDERSTANDING])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("places", [0, 7])
def test_every_weight_lies_in_one_part(
    heads: Literal["shared", "decoupled"], understanding: UnderstandingConfig | None, tied: bool, places: int
) -> None:
    model = make(heads=heads, understanding=understanding, tie_embeddings=tied, picture_places=places)
    parts = parts_of(model)
    seen = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for piece in (piece for part in parts.values() for piece in part):
        seen[piece.name][piece.start : piece.end] += 1
        assert piece.values.data_ptr() == piece.parameter[piece.start :].data_ptr()
    assert all(bool((count == 1).all()) for count in seen.values())
    looks = ["understanding", "connector"] if understanding else []
    heads_of = [] if tied else ["text_head"]
    drawn = ["image_embedding", *([] if tied and heads == "shared" else ["image_head"])]
    assert sorted(parts) == sorted(
        [*looks, "transformer", "text_embedding", *heads_of, *drawn, *(["place_embedding"] if places else [])]
    )


def test_parts_of_the_understanding_path() -> None:
    parts = parts_of(make(understanding=UNDERSTANDING, heads="decoupled"))
    assert {piece.name.split(".")[1] for piece in parts["connector"]} == {"connector"}
    assert "connector" not in {piece.name.split(".")[1] for piece in parts["understanding"]}
    names = {piece.name.split(".")[0] for piece in parts["image_embedding"]}
    assert names == {"image_embedding", "image_aligner"}


def test_rows_follow_the_table_of_the_vocabulary() -> None:
    scattered = Vocabulary(size=10, specials={"boi": 0}, tables={"image": [7, 3, 4, 9]})
    parts = parts_of(make(scattered, heads="shared"))
    assert [(piece.start, piece.end) for piece in parts["image_head"]] == [(3, 5), (7, 8), (9, 10)]
    assert [(piece.start, piece.end) for piece in parts["text_head"]] == [(0, 3), (5, 7), (8, 9)]
    assert {piece.name for piece in parts["image_embedding"]} == {"embedding.weight"}


def test_a_weight_without_a_part_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match=r"^motor.weight belongs to no part; name one in OWNERS"):
        owner_of("motor.weight")
