"""What is chosen reaches the host a row a request."""

import torch

from anymodal.decoding.chosen import Chosen


def test_what_is_sent_is_read_by_request() -> None:
    bundle = torch.tensor([[7, 8], [0, 1], [2, 3], [1, 1]])
    assert Chosen.of([], bundle).read() == [[7, 0, 2, 1], [8, 1, 3, 1]]
