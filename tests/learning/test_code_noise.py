import torch

from anymodal.learning.code_noise import Drawn, with_code_noise
from anymodal.tokens.batch import Batch, pad
from anymodal.tokens.document import TokenSequence

CODE_OF = torch.cat([torch.full((12,), -1), torch.arange(6)])


def test_code_noise_exchanges_drawn_codes_and_nothing_else() -> None:
    torch.manual_seed(0)
    ids = torch.tensor([2, 12, 13, 4, *[12 + k % 6 for k in range(200)], 5])
    loss = torch.arange(len(ids)) >= 4
    plain = pad([TokenSequence(ids, loss, ())] * 2, 0, None)
    drawn = Drawn.of(plain, CODE_OF)
    assert drawn is not None and drawn.num_documents == 2
    noised = with_code_noise(plain.ids.flatten(), drawn, 0.8).view_as(plain.ids)
    changed = noised != plain.ids
    assert not changed[:, :4].any(), "context codes without loss stay"
    assert not changed[:, -1].any(), "what is no code stays"
    assert set(noised[changed].tolist()) <= set(range(12, 18))
    assert 0 < changed.float().mean() < 0.8


def test_a_batch_that_draws_nothing_has_no_noise() -> None:
    ids = torch.tensor([2, 12, 13, 4, 5])
    plain = pad([TokenSequence(ids, torch.arange(5) >= 4, ())], 0, None)
    assert Drawn.of(plain, CODE_OF) is None
    assert Drawn.of(Batch(ids=plain.ids, targets=plain.ids, positions=plain.positions), CODE_OF) is None
