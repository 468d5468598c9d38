import torch

from anymodal.model.layout import Layout
from anymodal.tokens.batch import Batch

CODE_OF = torch.tensor([-1, -1, 0, 1])


def test_a_layout_says_where_targets_and_documents_are() -> None:
    ids = torch.tensor([[0, 2, 3, 1], [1, 1, 0, 0]])
    targets = torch.tensor([[2, 3, -100, -100], [1, -100, -100, 3]])
    documents = torch.tensor([[0, 0, 0, 1], [2, 2, -1, -1]])
    positions = torch.tensor([[0, 1, 2, 0], [0, 1, 0, 0]])
    layout = Layout.of(Batch(ids=ids, targets=targets, positions=positions, documents=documents), CODE_OF)
    assert layout.longest == 3
    assert layout.text.tolist() == [4]
    assert layout.image.tolist() == [0, 1, 7]
    assert layout.segments is not None
    assert layout.segments.gather[0].tolist() == [[0, 1, 2], [3, 3, 3], [4, 5, 5]]
    moved = layout.to(torch.device("meta"))
    assert moved.longest == 3 and moved.segments is not None
    assert all(each.is_meta for each in (moved.text, moved.image, moved.segments.scatter, *moved.segments.gather))


def test_a_batch_without_documents_has_no_segments() -> None:
    ids = torch.tensor([[1, 2]])
    assert Layout.of(Batch(ids=ids, targets=ids, positions=torch.arange(2)[None]), CODE_OF).segments is None
