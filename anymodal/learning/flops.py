"""Arithmetic of a training step, and what a device can do of it: model FLOPs utilisation (MFU)."""

import time
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anymodal.model.unified import AnyModal
from anymodal.tokens.batch import PADDING, Batch

NOMINAL_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
"""Dense bfloat16 of a GPU whose name holds the key, as its maker states it."""

READING = ("image_aligner", "understanding")  # what makes vectors of ids and pictures, beside the embeddings
GEMM_SIZE = 1024
GEMM_S = 0.2


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations of a step forward and backward: 6 a weight and token, and attention beside it.

    arXiv:2204.02311, appendix B, 6N + 12LHQT a token, where T is the length of the token's own document and N counts
    what is multiplied: embeddings are looked up, and a head reads the positions that its targets need. A weight that is
    frozen takes 2 forward, and 2 more where a gradient passes it on its way to what learns; without one attention takes
    4 in the place of 12. What is computed again counts once.

    >>> from anymodal.model.config import AnyModalConfig
    >>> from anymodal.tokens.vocabulary import Vocabulary
    >>> vocabulary = Vocabulary.build(text_size=300, specials={"pad": 0}, codebook_size=64)
    >>> StepFlops.of(AnyModal(AnyModalConfig(), vocabulary)).text_target
    559104
    """

    token: int
    pair: int
    text_target: int
    image_target: int
    picture: int

    @classmethod
    def of(cls, model: AnyModal) -> "StepFlops":
        """Count the weights of a model, which may be spread over processes, by what of it requires a gradient."""
        shape, look, tower = model.config.transformer, model.config.understanding, model.understanding
        shared = model.config.heads == "shared"
        picture = 0
        if look is not None and tower is not None:
            patches = (look.image_size // look.patch_size) ** 2
            seen = _learns(tower.patch_embedding, tower.blocks)
            blocks = _operations(tower.patch_embedding, passed=False) + _operations(tower.blocks, passed=seen)
            attention = (12 if seen else 4) * look.depth * look.dim * patches
            picture = patches * (blocks + attention) + look.num_tokens * _operations(tower.connector, passed=seen)
        reading = [each for name, each in model.named_children() if "embedding" in name or name in READING]
        embedded = _learns(*reading)
        hidden = embedded or _learns(model.transformer)
        return cls(
            token=_operations(model.transformer, passed=embedded),
            pair=(12 if hidden else 4) * shape.depth * shape.num_heads * shape.head_dim,
            text_target=_operations(model.head, passed=hidden),
            image_target=_operations(model.head if shared else model.image_head, passed=hidden),
            picture=picture,
        )

    def of_batch(self, batch: Batch, code_of: Tensor) -> Float[Tensor, ""]:
        """Return the operations of a batch; padding is no work."""
        real = torch.ones_like(batch.ids) if batch.documents is None else (batch.documents != PADDING).long()
        pairs = (real * (2 * batch.positions + 1)).sum()  # of all positions of a document: its length squared
        wanted = batch.targets.clamp(min=0)
        image = (batch.targets >= 0) & (code_of[wanted] >= 0)
        text = (batch.targets >= 0) & ~image
        counts = torch.stack([real.sum(), pairs, text.sum(), image.sum()]).double()
        costs = [self.token, self.pair, self.text_target, self.image_target]
        looked = 0 if batch.look_pixels is None else len(batch.look_pixels)
        return counts @ counts.new_tensor(costs) + looked * self.picture


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return operations a second: of a known GPU in bfloat16 the maker's figure, else of a measured matrix product."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        nominal = [flops for known, flops in NOMINAL_FLOPS.items() if known in name]
        if nominal:
            return nominal[0]
    return measured_flops(device, dtype)


@torch.no_grad()
def measured_flops(device: torch.device, dtype: torch.dtype, size: int = GEMM_SIZE) -> float:
    """Return the operations a second that a product of two square matrices of `size` reaches, the best of many."""
    x = torch.ones(size, size, device=device, dtype=dtype)
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < GEMM_S:
        before = time.perf_counter()
        x = x @ x
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - before)
    return 2 * size**3 / best


def _operations(module: nn.Module, *, passed: bool) -> int:
    """Return the operations of a module's weights on a place; `passed` says that what comes in wants a gradient."""
    frozen = 4 if passed or _learns(module) else 2
    return sum((6 if each.requires_grad else frozen) * each.numel() for each in module.parameters() if each.ndim > 1)


def _learns(*modules: nn.Module) -> bool:
    return any(each.requires_grad for module in modules for each in module.parameters())
