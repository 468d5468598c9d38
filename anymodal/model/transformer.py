"""The early-fusion decoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from anymodal.model import varlen
from anymodal.model.cache import CacheStep
from anymodal.model.config import TransformerConfig
from anymodal.model.elementwise import rms_normalised, rotary_table, rotate
from anymodal.tokens.batch import moved

SHORT = 32  # tokens; among shorter documents one call of attention costs less than several
LONG = 512  # tokens; from here on torch's kernel is no slower backwards than products in bfloat16 on a CPU


@dataclass(frozen=True)
class Segments:
    """Where the documents of a packed batch lie, so that attention runs a document at a time.

    Documents of like lengths make a group: only short ones pay for one that is more than twice as long. In a group,
    `gather[s, j]` is the flat position of token j of document s, whose last one is repeated up to the longest of the
    group; `scatter[i]` is the place of flat position i in the gathered documents of all groups.

    Where a kernel takes all documents at once, they stand between `edges` of the flat positions, a run of padding for
    one of them, and the longest has `longest` tokens.
    """

    gather: tuple[Tensor, ...]  # [s, l] each
    scatter: Int[Tensor, " bn"]
    edges: Int[Tensor, " d"]
    longest: int

    @classmethod
    def of(cls, documents: Int[Tensor, "b n"]) -> "Segments":
        """Find the documents of a batch that is on the host. Padding (-1) is of none."""
        flat = documents.flatten().clone()
        _, runs = torch.unique_consecutive(flat, return_counts=True)
        padding = flat < 0
        flat[padding] = flat.max() + 1 + torch.arange(int(padding.sum()))
        _, counts = torch.unique_consecutive(flat, return_counts=True)
        starts = counts.cumsum(0) - counts
        real = ~padding[starts]
        starts, counts = starts[real], counts[real]
        kinds = (counts.clamp(min=SHORT) - 1).float().log2().floor()
        groups, scatter, place = list[Tensor](), torch.zeros_like(flat), 0
        for kind in kinds.unique():
            begins, sizes = starts[kinds == kind], counts[kinds == kind]
            offsets = torch.arange(int(sizes.max()))
            group = begins[:, None] + torch.minimum(offsets[None], sizes[:, None] - 1)
            valid = offsets[None] < sizes[:, None]
            scatter[group[valid]] = place + torch.arange(group.numel()).view_as(group)[valid]
            groups.append(group)
            place += group.numel()
        edges = F.pad(runs.cumsum(0), (1, 0)).int()
        return cls(gather=tuple(groups), scatter=scatter, edges=edges, longest=int(runs.max()))

    def to(self, device: torch.device) -> "Segments":
        """Move every tensor to `device`."""
        return Segments(
            gather=tuple(moved(group, device) for group in self.gather),
            scatter=moved(self.scatter, device),
            edges=moved(self.edges, device),
            longest=self.longest,
        )

    def gathered(self, x: Float[Tensor, "b n heads k"]) -> list[Tensor]:
        """Return what stands at the places of every group, [s, l, heads, k] each."""
        index = torch.cat([group.flatten() for group in self.gather])
        flat = F.embedding(index, x.flatten(2).flatten(0, 1)).unflatten(-1, x.shape[2:])
        parts = flat.split([group.numel() for group in self.gather])
        return [part.unflatten(0, group.shape) for part, group in zip(parts, self.gather, strict=True)]

    def scattered(self, groups: Sequence[Tensor]) -> Float[Tensor, "bn d"]:
        """Put vectors of the tokens of every group, [s, l, d] each, where the tokens stand."""
        return F.embedding(self.scatter, torch.cat([group.flatten(0, 1) for group in groups]))


class HeadNorm(nn.Module):
    """LayerNorm over the width of a head with weights of its own for every head (Chameleon)."""

    def __init__(self, num_heads: int, head_dim: int, eps: float = 1e-5) -> None:
        """Start as the identity on normalised heads."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(num_heads, head_dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "b n heads head_dim"]) -> Float[Tensor, "b n heads head_dim"]:
        """Normalise every head."""
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.weight + self.bias


Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor | None]
"""Mixes queries [b, n, heads, head_dim], keys, values and places of a cache step to [b, n, heads, head_dim], or says
None: torch is faster."""


class Attention(nn.Module):
    """Causal self-attention with grouped heads and rotary positions."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        """Build the projections of layer number `layer`."""
        super().__init__()
        self.config, self.layer = config, layer
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.dim, heads * width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.dim, kv_heads * width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.dim, kv_heads * width, bias=config.attention_bias)
        self.o_proj = nn.Linear(heads * width, config.dim, bias=config.attention_bias and config.output_bias)
        self.q_norm, self.k_norm = (_qk_norm(config, count) for count in (heads, kv_heads))
        self.qkv_proj: nn.Module | None = None  # the first three as one, where a sampler has joined them
        self.attend: Attend | None = None  # attention to a cache, where a sampler has a faster one

    def forward(
        self, x: Float[Tensor, "b n d"], rotary: Float[Tensor, "2 b n 1 r"], context: Segments | CacheStep | None
    ) -> Float[Tensor, "b n d"]:
        """Mix the tokens of each document."""
        width = self.config.head_dim
        heads = (self.config.num_heads, self.config.num_kv_heads, self.config.num_kv_heads)
        if self.qkv_proj is not None:
            q, k, v = self.qkv_proj(x).unflatten(-1, (-1, width)).split(heads, dim=2)
        else:
            q, k, v = (proj(x).unflatten(-1, (-1, width)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = _normalised(self.q_norm, q), _normalised(self.k_norm, k)
        q, k = rotate(torch.cat((q, k), dim=2), rotary).split(heads[:2], dim=2)
        if isinstance(context, Segments):
            return self.o_proj(self._within(context, q, k, v.to(q.dtype)).view(*x.shape[:2], -1).to(x.dtype))
        k, v = k.transpose(1, 2), v.to(q.dtype).transpose(1, 2)
        mask, causal = None, True
        if isinstance(context, CacheStep):
            k, v = context.write(self.layer, k, v)
            mask, causal = context.visible, context.causal
            out = None if self.attend is None else self.attend(q, k, v, context.places)
            if out is not None:
                return self.o_proj(out.flatten(2).to(x.dtype))
            dtype = torch.promote_types(q.dtype, k.dtype)  # a cache may be narrower
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        return self.o_proj(self._mix(q.transpose(1, 2), k, v, mask, causal).to(x.dtype))

    def _within(
        self,
        documents: Segments,
        q: Float[Tensor, "b n heads k"],
        k: Float[Tensor, "b n kv_heads k"],
        v: Float[Tensor, "b n kv_heads k"],
    ) -> Float[Tensor, "bn d"]:
        """Attend, within documents."""
        kind = q.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else q.dtype
        drops = self.training and self.config.attention_dropout > 0
        if not drops and varlen.takes(q.device, dtype, self.config.head_dim):
            q, k, v = (each.to(dtype).flatten(0, 1) for each in (q, k, v))
            return varlen.attend(q, k, v, documents.edges, documents.longest).flatten(1)
        groups = zip(*map(documents.gathered, (q, k, v)), strict=True)
        return documents.scattered([self._mix(*(each.transpose(1, 2) for each in group)) for group in groups])

    def _mix(
        self,
        q: Float[Tensor, "b heads n k"],
        k: Float[Tensor, "b kv_heads m k"],
        v: Float[Tensor, "b kv_heads m k"],
        mask: Tensor | None = None,
        causal: bool = True,
    ) -> Float[Tensor, "b n d"]:
        """Attend, within rows."""
        dropout = self.config.attention_dropout if self.training else 0.0
        if causal and mask is None and _trains_in_bfloat16(q):
            return _mixed_by_products(q, k, v, dropout)
        grouped = self.config.num_kv_heads != self.config.num_heads
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=grouped
        )
        return rearrange(mixed, "b heads n k -> b n (heads k)")


class FeedForward(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        """Build the three projections."""
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.hidden_dim, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.dim, config.hidden_dim, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.hidden_dim, config.dim, bias=config.mlp_bias)
        self.gate_up_proj: nn.Module | None = None  # the first two as one, where a sampler has joined them

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Transform every token."""
        if self.gate_up_proj is not None:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
            return self.down_proj(F.silu(gate) * up)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and feed-forward with residuals."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        """Build layer number `layer`."""
        super().__init__()
        self.swin = config.norm_position == "swin"
        self.attention = Attention(config, layer)
        self.feed_forward = FeedForward(config)
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "b n d"], rotary: Float[Tensor, "2 b n 1 r"], context: Segments | CacheStep | None
    ) -> Float[Tensor, "b n d"]:
        """Apply the block."""
        if self.swin:
            x = x + self.dropout(self.attention_norm(self.attention(x, rotary, context)))
            return x + self.dropout(self.feed_forward_norm(self.feed_forward(x)))
        x = x + self.dropout(self.attention(_normalised(self.attention_norm, x), rotary, context))
        return x + self.dropout(self.feed_forward(_normalised(self.feed_forward_norm, x)))


Through = Callable[[Block, Tensor, Tensor, Segments | CacheStep | None], Tensor]
"""Passes hidden states through a block, as the block itself would."""

Stack = Callable[[Tensor, CacheStep], Tensor | None]
"""Passes hidden states [b, n, d] through all blocks and the norm behind them, or says None: torch is to do it."""


class Transformer(nn.Module):
    """A stack of blocks between embeddings and heads.

    >>> transformer = Transformer(TransformerConfig(dim=64, depth=1, num_heads=1, num_kv_heads=1))
    >>> transformer(torch.zeros(1, 3, 64), torch.arange(3)[None]).shape
    torch.Size([1, 3, 64])
    """

    def __init__(self, config: TransformerConfig) -> None:
        """Build the stack; projections into the residual stream start small (GPT-2)."""
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.through: Through | None = None  # how a training passes a block, where it compiles or computes it again
        self.stack: Stack | None = None  # a step of all blocks at once, where a sampler has a faster one
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * config.depth) ** 0.5)
            elif name.endswith("proj.weight"):
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        positions: Int[Tensor, "b n"],
        context: Segments | CacheStep | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return normalised hidden states; `context` None means that every row is one document."""
        if self.stack is not None and isinstance(context, CacheStep) and context.places is positions:
            out = self.stack(x, context)
            if out is not None:
                return out
        rotary = rotary_table(positions, self.config.head_dim, self.config.rope_theta)
        rotary = rotary[:, :, :, None].to(torch.promote_types(x.dtype, torch.float32))
        through = self.through if torch.is_grad_enabled() else None
        for block in self.blocks:
            x = block(x, rotary, context) if through is None else through(cast(Block, block), x, rotary, context)
        return self.norm(x)


def _trains_in_bfloat16(q: Tensor) -> bool:
    return q.is_cpu and q.dtype is torch.bfloat16 and q.requires_grad and q.shape[2] < LONG


def _mixed_by_products(
    q: Float[Tensor, "b heads n k"], k: Float[Tensor, "b kv_heads n k"], v: Float[Tensor, "b kv_heads n k"], drop: float
) -> Float[Tensor, "b n d"]:
    """Attend causally by products of matrices, of which bfloat16 has fast ones.

    Forwards and backwards, torch's kernel was measured to take two to seven times as long on a CPU.
    """
    (rows, heads, count, width), groups = q.shape, k.shape[1]
    later = q.new_full((count, count), -torch.inf).triu(1).repeat(heads // groups, 1)
    q = q.reshape(rows * groups, -1, width)
    scores = torch.baddbmm(later, q, k.flatten(0, 1).mT, alpha=width**-0.5)
    mixed = F.dropout(scores.softmax(-1), drop) @ v.flatten(0, 1)
    return rearrange(mixed.view(rows, heads, count, width), "b heads n k -> b n (heads k)")


def _normalised(norm: nn.Module, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """Normalise what a product reads."""
    return rms_normalised(norm, x) if isinstance(norm, nn.RMSNorm) else norm(x)


def _qk_norm(config: TransformerConfig, num_heads: int) -> nn.Module:
    if config.qk_norm == "layer":
        return HeadNorm(num_heads, config.head_dim)
    if config.qk_norm == "rms":
        return nn.RMSNorm(config.head_dim, eps=config.norm_eps)
    return nn.Identity()
