from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anymodal.model.cache import KVCache
from anymodal.model.config import AnyModalConfig, TransformerConfig, UnderstandingConfig
from anymodal.model.unified import AnyModal
from anymodal.tokens.batch import Batch, pad
from anymodal.tokens.document import TokenSequence
from anymodal.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary.build(text_size=20, specials={"pad": 0, "look": 1, "boi": 2}, codebook_size=8)
TRANSFORMER = TransformerConfig(
    dim=32, depth=2, num_heads=2, num_kv_heads=2, head_dim=16, hidden_dim=64, max_seq_len=16
)
UNDERSTANDING = UnderstandingConfig(image_size=16, patch_size=8, dim=8, depth=1, num_heads=2, hidden_dim=16)
Heads = Literal["shared", "decoupled"]


def make(
    heads: Heads = "decoupled", understanding: UnderstandingConfig | None = UNDERSTANDING, **changes: Any
) -> AnyModal:
    torch.manual_seed(0)
    return AnyModal(
        AnyModalConfig(transformer=TRANSFORMER, understanding=understanding, heads=heads, **changes), VOCABULARY
    )


def batch_of(*, looks: bool) -> Batch:
    """Two rows: text ids, then codes, a picture to look at in the first one."""
    ids = torch.tensor([2, 1, 1, 1, 1, 3, 4, 21, 22, 5])
    look = ((1, torch.linspace(-1, 1, 768).view(3, 16, 16)),) if looks else ()
    first = TokenSequence(ids, torch.arange(10) > 5, look)
    second = TokenSequence(ids.flip(0)[:6], torch.arange(6) > 0, ())
    return pad([first, second], 0, 4)


@pytest.mark.parametrize("heads", ["shared", "decoupled"])
def test_losses_are_those_of_the_logits(heads: Heads) -> None:
    model, batch = make(heads).double(), batch_of(looks=True)
    assert batch.look_pixels is not None
    batch.look_pixels = batch.look_pixels.double()
    out = model(batch)
    drawn = batch.targets >= 20
    written = (batch.targets >= 0) & ~drawn
    assert out.hidden.shape == (2, 10, 32)
    assert out.image_logits.shape == (2, 10, 8)
    assert out.logits.shape == (2, 10, 20 if heads == "decoupled" else 28)
    image = F.cross_entropy(out.image_logits[drawn], batch.targets[drawn] - 20, reduction="sum")
    if heads == "shared":
        image = F.cross_entropy(out.logits[drawn], batch.targets[drawn], reduction="sum")
    text = F.cross_entropy(out.logits[written], batch.targets[written], reduction="sum")
    torch.testing.assert_close(out.losses["image"].total, image)
    torch.testing.assert_close(out.losses["text"].total, text)
    assert (int(out.losses["image"].count), int(out.losses["text"].count)) == (4, 5)


def test_looked_at_pixels_move_what_stands_behind_them() -> None:
    model, batch = make(), batch_of(looks=True)
    before = model(batch).hidden
    assert batch.look_pixels is not None
    batch.look_pixels = -batch.look_pixels
    moved = (model(batch).hidden - before).abs().amax(-1) > 1e-6
    assert moved[0].tolist() == [False] + [True] * 9
    assert not moved[1].any()


@pytest.mark.parametrize("heads", ["shared", "decoupled"])
def test_every_parameter_has_a_gradient_in_every_batch(heads: Heads) -> None:
    model = make(heads).train()
    batch = batch_of(looks=False)
    batch.targets[batch.targets >= 20] = -100  # no code to draw
    sum((part.total for part in model(batch).losses.values()), torch.zeros(())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name.startswith("understanding"):
            assert not parameter.grad.any(), name


@pytest.mark.parametrize("heads", ["shared", "decoupled"])
def test_one_batch_is_learned_by_heart(heads: Heads) -> None:
    model, batch = make(heads).train(), batch_of(looks=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = sum((part.mean for part in model(batch).losses.values()), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("tied", [False, True])
def test_plain_ids_work_and_the_cache_agrees(tied: bool) -> None:
    model = make("shared", None, tie_embeddings=tied).double().eval()
    assert (model.head.weight is model.embedding.weight) == tied
    ids = torch.randint(0, 28, (2, 7))
    cache = KVCache(TRANSFORMER, num_rows=2, capacity=7, dtype=torch.float64)
    torch.testing.assert_close(model.step(ids, cache), model(ids).hidden, atol=1e-12, rtol=1e-12)
    assert model.look_tokens is None
    assert model(ids).losses == {}


def test_places_of_a_picture_are_told_and_the_cache_agrees() -> None:
    model = make("decoupled", None, picture_places=5).double().eval()
    ids = torch.tensor([[3, 2, 21, 22, 23, 24, 6], [2, 21, 22, 23, 24, 6, 2]])
    whole = model(ids).hidden
    cache = KVCache(TRANSFORMER, num_rows=2, capacity=7, dtype=torch.float64)
    parts = []
    for chunk in ids.split([3, 1, 3], dim=1):
        parts.append(model.step(chunk, cache))
        cache.keep(chunk.shape[1])
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-12, rtol=1e-12)
    assert model.place_embedding is not None
    with torch.no_grad():
        model.place_embedding.weight[1] += 1  # the place behind the first code of a picture
    changed = (model(ids).hidden != whole).any(-1)
    assert changed.int().argmax(1).tolist() == [2, 1]


def test_a_code_is_read_from_its_own_embedding() -> None:
    model = make()
    with torch.no_grad():
        model.image_embedding.weight[3] += 1
    changed = model.embed(torch.tensor([[23, 22, 5]]))
    model = make()
    same = (model.embed(torch.tensor([[23, 22, 5]])) == changed).all(-1)
    assert same.tolist() == [[False, True, True]]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: make()(torch.zeros(1, 17, dtype=torch.long)), "a document has 17 tokens, the context holds 16"),
        (
            lambda: AnyModal(
                AnyModalConfig(transformer=TRANSFORMER, heads="decoupled"),
                Vocabulary(size=10, specials={"pad": 9}, tables={"image": [3, 4]}),
            ),
            "decoupled heads need the image codes behind all other ids",
        ),
    ],
)
def test_mistakes_are_named(mistake: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mistake()


def test_near_codes_begin_near_each_other() -> None:
    torch.manual_seed(0)
    vocabulary = Vocabulary.build(text_size=12, specials={"pad": 0}, codebook_size=3)
    vectors = torch.tensor([[0.0, 0.0], [0.1, 0.0], [3.0, -3.0]])
    decoupled = AnyModal(AnyModalConfig(heads="decoupled", image_embedding_dim=64), vocabulary)
    shared = AnyModal(AnyModalConfig(), vocabulary)
    text = shared.head.weight[:12].clone(), shared.embedding.weight[:12].clone()
    for model in (decoupled, shared):
        model.start_from_codebook(vectors)
    last = next(decoupled.image_head[-1].parameters())
    codes = vocabulary.table("image")
    for rows in (decoupled.image_embedding.weight, last, shared.embedding.weight[codes], shared.head.weight[codes]):
        likeness = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).mT
        assert likeness[0, 1] > 0.9
        assert likeness[0, 2] < 0.6
    assert torch.equal(shared.head.weight[:12], text[0])
    assert torch.equal(shared.embedding.weight[:12], text[1])


@pytest.mark.parametrize("codes", [[12, 13, 14, 15], [12, 14, 13, 15], [4, 9, 12, 15]])
def test_codes_of_a_shared_head_are_scored_without_a_copy_of_its_rows(
    monkeypatch: pytest.MonkeyPatch, codes: list[int]
) -> None:
    vocabulary = Vocabulary(size=16, specials={"pad": 0, "boi": 2}, tables={"image": codes})
    model = AnyModal(AnyModalConfig(transformer=TRANSFORMER, heads="shared"), vocabulary)
    hidden, weight, used = torch.randn(3, TRANSFORMER.dim), model.head.weight, list[Tensor]()
    plain = F.linear

    def spy(x: Tensor, rows: Tensor) -> Tensor:
        used.append(rows)
        return plain(x, rows)

    monkeypatch.setattr(F, "linear", spy)
    torch.testing.assert_close(model.image_logits(hidden), plain(hidden, weight)[:, codes])
    shared = used[0].untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
    assert shared == (codes == [12, 13, 14, 15])
