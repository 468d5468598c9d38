"""The decoupled path: a SigLIP-shaped vision encoder and its connector."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from anymodal.model.config import UnderstandingConfig


class VisionBlock(nn.Module):
    """Pre-norm block of a vision transformer (arXiv:2010.11929)."""

    def __init__(self, config: UnderstandingConfig) -> None:
        """Build attention and feed-forward."""
        super().__init__()
        self.num_heads = config.num_heads
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"
        self.norm_1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm_2 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.fc_1 = nn.Linear(config.dim, config.hidden_dim)
        self.fc_2 = nn.Linear(config.hidden_dim, config.dim)

    def forward(self, x: Float[Tensor, "p t d"]) -> Float[Tensor, "p t d"]:
        """Mix and transform the patches of each picture."""
        y = self.norm_1(x)
        q, k, v = (
            rearrange(proj(y), "p t (heads k) -> p heads t k", heads=self.num_heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = x + self.out_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "p heads t k -> p t (heads k)"))
        return x + self.fc_2(F.gelu(self.fc_1(self.norm_2(x)), approximate=self.approximate))


class UnderstandingEncoder(nn.Module):
    """Turn pictures into features that stand in the transformer's sequence (SigLIP, arXiv:2303.15343, and Janus).

    >>> encoder = UnderstandingEncoder(UnderstandingConfig(merge=2), out_dim=32)
    >>> encoder(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 16, 32])
    """

    def __init__(self, config: UnderstandingConfig, out_dim: int) -> None:
        """Build the tower and the connector to width `out_dim`."""
        super().__init__()
        self.config = config
        side = config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.dim, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Parameter(torch.randn(side * side, config.dim) * 0.02)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        widths = [config.dim * config.merge**2] + [out_dim] * config.connector_depth
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            layers += ([nn.GELU()] if i else []) + [nn.Linear(before, after)]
        self.connector = nn.Sequential(*layers)

    def forward(self, pixels: Float[Tensor, "p 3 h w"]) -> Float[Tensor, "p t out"]:
        """Read pixels in [-1, 1].

        Raises:
            ValueError: the pictures do not have the encoder's size.
        """
        size = self.config.image_size
        if pixels.shape[-2:] != (size, size):
            raise ValueError(
                f"the understanding encoder reads {size} x {size} pixels, got {list(pixels.shape[-2:])}; resize first."
            )
        patches = rearrange(
            self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)), "p d rows columns -> p (rows columns) d"
        )
        x = patches + self.position_embedding
        for block in self.blocks:
            x = block(x)
        merge = self.config.merge
        merged = rearrange(
            self.norm(x), "p (rows a columns b) d -> p (rows columns) (a b d)", a=merge, b=merge,
            columns=size // self.config.patch_size // merge,
        )  # fmt: skip
        return self.connector(merged)
