"""Configuration of the unified model; free of torch."""

from dataclasses import dataclass
from typing import Literal

from anymodal.configuration import check_ranges
from anymodal.tokens.picture_config import PictureFit


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of a decoder that can be Chameleon's, Emu3's or Janus's by configuration.

    `norm_position`: "pre" normalises the input of each half block (Llama, Emu3, Janus, Chameleon-7B), "swin" its output
    (Chameleon-34B, arXiv:2405.09818 section 2.2). `qk_norm`: "layer" is a LayerNorm with weights of its own for every
    head (Chameleon), "rms" an RMSNorm that heads share (Qwen3). `attention_bias` is that of queries, keys and values,
    and of what leads out of the heads unless `output_bias` is false (Qwen2).
    """

    dim: int = 256
    depth: int = 6
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 64
    hidden_dim: int = 704
    norm_eps: float = 1e-6
    norm_position: Literal["pre", "swin"] = "pre"
    qk_norm: Literal["none", "layer", "rms"] = "none"
    rope_theta: float = 10000.0
    max_seq_len: int = 1024
    attention_bias: bool = False
    output_bias: bool = True
    mlp_bias: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check the geometry of the heads."""
        check_ranges(self, dim=2**20, depth=2**10, num_heads=2**12, num_kv_heads=2**12, head_dim=2**16)
        check_ranges(self, hidden_dim=2**24, max_seq_len=2**30)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads, got {self.num_kv_heads} and {self.num_heads}.")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}.")


@dataclass(frozen=True, kw_only=True)
class UnderstandingConfig:
    """Shape of the vision encoder and its connector.

    `merge` x `merge` neighbouring features become one token in the connector, so that a picture takes
    (image_size / patch_size / merge) ** 2 positions. `fit`: how a picture of another shape is brought to the square.
    `activation`: SigLIP computes GELU by its tanh formula, Janus exactly.
    """

    image_size: int = 64
    patch_size: int = 8
    dim: int = 192
    depth: int = 4
    num_heads: int = 3
    hidden_dim: int = 768
    norm_eps: float = 1e-6
    merge: int = 1
    connector_depth: int = 2
    fit: PictureFit = PictureFit(kind="pad")
    activation: Literal["gelu", "gelu_tanh"] = "gelu_tanh"

    def __post_init__(self) -> None:
        """Check that patches, heads and merging divide evenly."""
        check_ranges(self, image_size=2**14, patch_size=2**14, dim=2**20, num_heads=2**12)
        check_ranges(self, 0, depth=2**10)
        check_ranges(self, hidden_dim=2**24, merge=2**10, connector_depth=2**6)
        if self.image_size % (self.patch_size * self.merge):
            raise ValueError(
                f"patch_size x merge must divide image_size, got {self.patch_size} x {self.merge} "
                f"and {self.image_size}."
            )
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads must divide dim, got {self.num_heads} and {self.dim}.")

    @property
    def num_tokens(self) -> int:
        """Positions that one looked-at picture takes."""
        return (self.image_size // self.patch_size // self.merge) ** 2


@dataclass(frozen=True, kw_only=True)
class AnyModalConfig:
    """Shape of the unified model.

    `heads`: "shared" has one matrix over all ids (Chameleon, Emu3), "decoupled" an embedding and a head a modality
    (Janus: `gen_embed`, `gen_aligner`, `gen_head`). `understanding` None means that looked-at pictures are read as
    codes. `picture_places` is the number of places of a picture that have a learned embedding of their own, beside the
    rotary positions (one more than a picture has codes; published models have none: 0).
    """

    transformer: TransformerConfig = TransformerConfig()
    understanding: UnderstandingConfig | None = None
    heads: Literal["shared", "decoupled"] = "shared"
    tie_embeddings: bool = False
    image_embedding_dim: int = 8
    image_head_dim: int = 256
    picture_places: int = 0

    def __post_init__(self) -> None:
        """Check that no size is out of all bounds."""
        check_ranges(self, image_embedding_dim=2**20, image_head_dim=2**20)
        check_ranges(self, 0, picture_places=2**20)
