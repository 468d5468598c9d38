"""The quantizers of image tokenizers: one face over vector-quantize-pytorch."""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anymodal.tokens.image_config import QuantizerConfig


@dataclass(frozen=True)
class Quantized:
    """Latents after quantization, their codes and the codebook loss (zero where the quantizer has none)."""

    latents: Float[Tensor, "b n c"]
    codes: Int[Tensor, "b n"]
    loss: Float[Tensor, ""]


class Quantizer(nn.Module):
    """Project latents to the codebook's width, quantize them there, and project back.

    >>> quantizer = Quantizer(QuantizerConfig(kind="fsq", codebook_size=64, levels=(8, 8)), latent_channels=16)
    >>> quantizer(torch.zeros(1, 4, 16)).codes.shape
    torch.Size([1, 4])
    """

    def __init__(self, config: QuantizerConfig, latent_channels: int, *, project: bool = True) -> None:
        """Build the codebook that `config` asks for; without `project` the latents are as wide as its vectors."""
        super().__init__()
        self.config = config
        self.project_in = nn.Linear(latent_channels, config.width) if project else nn.Identity()
        self.project_out = nn.Linear(config.width, latent_channels) if project else nn.Identity()
        self.codebook = _codebook(config)

    def forward(self, latents: Float[Tensor, "b n c"]) -> Quantized:
        """Quantize latents; gradients pass straight through (arXiv:1711.00937, section 3.2)."""
        narrow = self.project_in(latents).float()
        with torch.autocast(narrow.device.type, enabled=False):
            result = self.codebook(narrow)
        quantized, codes = result[0], result[1]
        loss = result[2].sum() if len(result) > 2 else narrow.new_zeros(())
        return Quantized(latents=self._widened(quantized), codes=codes.long(), loss=loss.float())

    def look_up(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b n c"]:
        """Return the latents of codes in [0, codebook_size)."""
        return self._widened(self.vectors(codes))

    def vectors(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b n width"]:
        """Return the vectors of codes in [0, codebook_size), as wide as the codebook."""
        if self.config.kind in ("vq", "l2-vq", "simvq"):
            return F.embedding(codes, cast(Tensor, self.codebook.codebook))
        return cast(Any, self.codebook).indices_to_codes(codes)

    def learn_together(self) -> None:
        """Let a codebook that is a moving average count the vectors of all processes, which must know each other."""
        if self.config.kind in ("vq", "l2-vq") and self.config.codebook_update == "average":
            shared = _imported_codebook(self.config, together=True).train(self.training)
            shared.load_state_dict(self.codebook.state_dict())
            self.codebook = shared.to(cast(Tensor, self.codebook.codebook).device)

    @property
    def revives(self) -> bool:
        """Whether the vectors of dead codes can be put elsewhere, and are to be."""
        return isinstance(self.codebook, LearnedCodebook) and self.config.dead_code_threshold > 0

    @torch.no_grad()
    def revive(self, dead: Bool[Tensor, " k"], vectors: Float[Tensor, "n width"]) -> None:
        """Exchange the vectors of dead codes, as many as `vectors` are."""
        cast(LearnedCodebook, self.codebook).embedding[dead] = vectors

    def _widened(self, vectors: Float[Tensor, "b n width"]) -> Float[Tensor, "b n c"]:
        if isinstance(self.project_out, nn.Linear):
            vectors = vectors.to(self.project_out.weight.dtype)
        return self.project_out(vectors)


class LearnedCodebook(nn.Module):
    """A table of vectors that gradients move (arXiv:1711.00937, equation 3); `normalised` is applied on every use.

    >>> quantized, codes, loss = LearnedCodebook(16, 4)(torch.zeros(1, 3, 4))
    >>> quantized.shape, codes.shape
    (torch.Size([1, 3, 4]), torch.Size([1, 3]))
    """

    def __init__(self, size: int, width: int, *, normalised: bool = False, commitment_weight: float = 0.25) -> None:
        """Draw `size` vectors."""
        super().__init__()
        self.normalised = normalised
        self.commitment_weight = commitment_weight
        self.embedding = nn.Parameter(torch.empty(size, width))
        nn.init.uniform_(self.embedding, -1 / size, 1 / size)

    @property
    def codebook(self) -> Float[Tensor, "k width"]:
        """The vectors as they are compared and looked up."""
        return self._in_use(self.embedding.float())

    def forward(
        self, vectors: Float[Tensor, "b n width"]
    ) -> tuple[Float[Tensor, "b n width"], Int[Tensor, "b n"], Float[Tensor, ""]]:
        """Return the nearest vectors, their codes and the codebook loss; gradients pass straight through.

        The squared distance is summed from its three terms, as published tokenizers do: among almost equal distances
        the order of the operations decides.
        """
        vectors, table = self._in_use(vectors), self.codebook
        with torch.no_grad():
            distances = vectors.square().sum(-1, keepdim=True) + table.square().sum(-1)
            codes = distances.sub_(vectors @ table.T, alpha=2).argmin(-1)
        nearest = F.embedding(codes, table)
        commitment = F.mse_loss(vectors, nearest.detach())
        loss = F.mse_loss(nearest, vectors.detach()) + self.commitment_weight * commitment
        return nearest.detach() + (vectors - vectors.detach()), codes, loss

    def _in_use(self, vectors: Float[Tensor, "*b width"]) -> Float[Tensor, "*b width"]:
        return F.normalize(vectors, dim=-1) if self.normalised else vectors


def _codebook(config: QuantizerConfig) -> nn.Module:
    if config.codebook_update == "gradient":
        return LearnedCodebook(
            config.codebook_size,
            config.codebook_dim,
            normalised=config.kind == "l2-vq",
            commitment_weight=config.commitment_weight,
        )
    with torch.device("cpu"):  # its buffers follow from the config and stand in no file: no shapes without numbers
        return _imported_codebook(config)


def _imported_codebook(config: QuantizerConfig, *, together: bool = False) -> nn.Module:
    import vector_quantize_pytorch as vqp  # noqa: PLC0415  (it costs a second; only tokenizers need it)

    if config.kind == "fsq":
        return vqp.FSQ(levels=list(config.levels))
    if config.kind == "lfq":
        return vqp.LFQ(
            dim=config.codebook_dim,
            codebook_size=config.codebook_size,
            entropy_loss_weight=config.entropy_weight,
            commitment_loss_weight=config.commitment_weight,
        )
    if config.kind == "simvq":
        return vqp.SimVQ(
            dim=config.codebook_dim,
            codebook_size=config.codebook_size,
            input_to_quantize_commit_loss_weight=config.commitment_weight,
        )
    return vqp.VectorQuantize(
        dim=config.codebook_dim,
        codebook_size=config.codebook_size,
        use_cosine_sim=config.kind == "l2-vq",
        commitment_weight=config.commitment_weight,
        threshold_ema_dead_code=config.dead_code_threshold,
        kmeans_init=False,
        sync_codebook=together,
    )


def flatten_grid(latents: Float[Tensor, "b c rows columns"]) -> Float[Tensor, "b n c"]:
    """Return a grid of latents as a sequence, row by row."""
    return rearrange(latents, "b c rows columns -> b (rows columns) c")
