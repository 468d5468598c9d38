"""AnyModal: embeddings, transformer and heads in one pure module."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from anymodal.model.cache import CacheStep, KVCache
from anymodal.model.config import AnyModalConfig
from anymodal.model.layout import Layout
from anymodal.model.loss import TokenLoss, token_loss, token_losses
from anymodal.model.transformer import Transformer
from anymodal.model.understanding import UnderstandingEncoder
from anymodal.tokens.batch import IGNORE, Batch
from anymodal.tokens.vocabulary import Vocabulary

CODE_FREQUENCY = 1.0
CODE_LOGIT_SCALE, CODE_SCALE = 0.05, 0.2


@dataclass(frozen=True)
class ModelOutput:
    """Hidden states, and the losses by modality where targets came along; logits are computed when read."""

    hidden: Float[Tensor, "b n d"]
    losses: dict[str, TokenLoss]
    model: "AnyModal"

    @cached_property
    def logits(self) -> Float[Tensor, "b n v"]:
        """Scores of the text head: over all ids when heads are shared, else over the text ids."""
        return self.model.text_logits(self.hidden)

    @cached_property
    def image_logits(self) -> Float[Tensor, "b n k"]:
        """Scores over the image codes."""
        return self.model.image_logits(self.hidden)


class AnyModal(nn.Module):
    """One transformer over text ids, image codes and looked-at pictures.

    Heads and embeddings are shared over all ids (arXiv:2405.09818, arXiv:2409.18869) or decoupled (arXiv:2410.13848),
    by configuration.

    >>> vocabulary = Vocabulary.build(text_size=300, specials={"pad": 0}, codebook_size=64)
    >>> model = AnyModal(AnyModalConfig(), vocabulary)
    >>> model(torch.zeros(1, 4, dtype=torch.long)).logits.shape
    torch.Size([1, 4, 364])
    """

    code_of: Tensor  # of every id, -1 where it is no code
    image_ids: Tensor  # of every code

    def __init__(self, config: AnyModalConfig, vocabulary: Vocabulary) -> None:
        """Build an untrained model.

        Raises:
            ValueError: decoupled heads are asked for and text ids stand behind image codes.
        """
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        dim = config.transformer.dim
        codes = vocabulary.table("image")
        self.num_text_rows = vocabulary.size
        if config.heads == "decoupled":
            self.num_text_rows = int(codes.min())
            if self.num_text_rows + len(codes) != vocabulary.size:
                raise ValueError(
                    "decoupled heads need the image codes behind all other ids, but codes begin at "
                    f"{self.num_text_rows} and {len(codes)} codes do not fill the {vocabulary.size} ids; "
                    "use shared heads for this vocabulary."
                )
            self.image_embedding = nn.Embedding(len(codes), config.image_embedding_dim)
            self.image_aligner = _mlp(config.image_embedding_dim, dim, dim)
            self.image_head = _mlp(dim, config.image_head_dim, len(codes))
        self.embedding = nn.Embedding(self.num_text_rows, dim)
        self.transformer = Transformer(config.transformer)
        self.understanding = UnderstandingEncoder(config.understanding, dim) if config.understanding else None
        self.place_embedding = nn.Embedding(config.picture_places, dim) if config.picture_places else None
        self.head = nn.Linear(dim, self.num_text_rows, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        if self.place_embedding is not None:
            nn.init.normal_(self.place_embedding.weight, std=0.02)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        code_of = torch.full((vocabulary.size,), -1, device=codes.device)  # tables are real on the meta device too
        code_of[codes] = torch.arange(len(codes), device=codes.device)
        self.register_buffer("code_of", code_of, persistent=False)
        self.register_buffer("image_ids", codes.clone(), persistent=False)
        self.code_span = _span(codes)  # where ids follow each other, a head's rows of the codes are no copy
        self.code_head: Callable[[nn.Module, Tensor], Tensor] | None = (
            None  # scores codes with a shared head, where a sampler has a faster way
        )

    @torch.no_grad()
    def start_from_codebook(self, vectors: Float[Tensor, "k c"]) -> None:
        """Start the embedding and head of codes from the quantizer's code vectors: near codes begin near each other.

        Rows are random Fourier features of the vectors (Rahimi and Recht, NIPS 2007), whose products fall with
        distance. Those of a shared table are as large as a decoupled path makes them, larger than those of text;
        where one table is both, it is as small as a head.
        """
        scaled = (vectors - vectors.mean(0)) / vectors.std(0).clamp(min=1e-6)
        if self.config.heads == "decoupled":
            last = cast(nn.Linear, self.image_head[-1])
            self.image_embedding.weight.copy_(_features(scaled, self.image_embedding.weight.shape[1]))
            last.weight.copy_(CODE_LOGIT_SCALE * _features(scaled, last.weight.shape[1]))
        else:
            self.embedding.weight[self.image_ids] = CODE_SCALE * _features(scaled, self.embedding.weight.shape[1])
            self.head.weight[self.image_ids] = CODE_LOGIT_SCALE * _features(scaled, self.head.weight.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.embedding.weight.device

    @property
    def look_tokens(self) -> int | None:
        """Positions of one looked-at picture; None without an understanding path."""
        return self.config.understanding.num_tokens if self.config.understanding else None

    def forward(
        self, batch: Batch | Int[Tensor, "b n"], z_loss: float = 0.0, layout: Layout | None = None
    ) -> ModelOutput:
        """Read a batch, or plain ids in [0, vocab_size) with a document a row; `z_loss` is that of its losses.

        Without its `layout` that is found here, for which the host waits where the batch is on an accelerator.

        Raises:
            ValueError: a row is longer than the context.
        """
        if isinstance(batch, Tensor):
            positions = torch.arange(batch.shape[1], device=batch.device).expand_as(batch)
            batch = Batch(ids=batch, targets=torch.full_like(batch, IGNORE), positions=positions)
        layout = Layout.of(batch, self.code_of) if layout is None else layout
        most = self.config.transformer.max_seq_len
        if layout.longest > most:
            raise ValueError(f"a document has {layout.longest} tokens, the context holds {most}; shorten it.")
        x = self.embed(batch.ids, batch.look_pixels, batch.look_index)
        columns = torch.arange(batch.ids.shape[1], device=x.device).expand_as(batch.ids)
        x = self._with_places(x, batch.ids, columns)
        hidden = self.transformer(x, batch.positions, layout.segments)
        return ModelOutput(hidden=hidden, losses=self._losses(hidden, batch.targets, layout, z_loss), model=self)

    def log_likelihoods(self, batch: Batch) -> Float[Tensor, " b"]:
        """Return the log probability, in nats, of the targets of each row of a model that evaluates.

        Raises:
            ValueError: a row is longer than the context.
        """
        hidden = self(replace(batch, targets=torch.full_like(batch.targets, IGNORE))).hidden
        found = []
        for i in range(len(hidden)):
            row = Batch(
                ids=batch.ids[i : i + 1], targets=batch.targets[i : i + 1], positions=batch.positions[i : i + 1]
            )
            losses = self._losses(hidden[i : i + 1], row.targets, Layout.of(row, self.code_of), 0.0)
            found.append(-sum((part.nats for part in losses.values()), hidden.new_zeros((), dtype=torch.float32)))
        return torch.stack(found)

    def step(
        self,
        ids: Int[Tensor, "b n"],
        cache: KVCache,
        look_pixels: Float[Tensor, "p 3 h w"] | None = None,
        look_index: Int[Tensor, "p t"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Append ids to the cached rows, return their hidden states; the caller says with `cache.keep` what stays."""
        return self.append(self.embed(ids, look_pixels, look_index), ids, cache.reserve(ids.shape[1]))

    def append(self, x: Float[Tensor, "b n d"], ids: Int[Tensor, "b n"], step: CacheStep) -> Float[Tensor, "b n d"]:
        """Append embedded ids at reserved places of a cache, return their hidden states."""
        x = self._with_places(x, ids, step.places, step.begins)
        return self.transformer(x, step.places, step)

    def embed(
        self,
        ids: Int[Tensor, "b n"],
        look_pixels: Float[Tensor, "p 3 h w"] | None = None,
        look_index: Int[Tensor, "p t"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the vectors of ids, with features of looked-at pictures at `look_index` of the flattened rows."""
        if self.config.heads == "decoupled":
            codes = self.code_of[ids]
            is_code = (codes >= 0)[..., None]
            read = self.embedding(ids.masked_fill(codes >= 0, 0))
            drawn = self.image_aligner(self.image_embedding(codes.clamp(min=0)))
            x = torch.where(is_code, drawn.to(read.dtype), read)
        else:
            x = self.embedding(ids)
        if look_pixels is not None and look_index is not None:
            assert self.understanding is not None, "looked-at pictures need an understanding path"
            features = self.understanding(look_pixels).flatten(0, 1).to(x.dtype)
            x = x.flatten(0, 1).index_copy(0, look_index.flatten(), features).view_as(x)
        elif self.understanding is not None and self.training:
            x = x + 0.0 * sum(parameter.sum() for parameter in self.understanding.parameters())
        return x

    def _with_places(
        self,
        x: Float[Tensor, "b n d"],
        ids: Int[Tensor, "b n"],
        places: Int[Tensor, "b n"],
        begins: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Tell a picture's start and its codes how far into the picture they stand.

        `begins` says where the last picture of each row began before these ids, and is moved on.
        """
        if self.place_embedding is None:
            return x
        is_begin = ids == self.vocabulary.special("boi")
        starts = places.masked_fill(~is_begin, -1)
        if begins is not None:
            starts[:, 0] = torch.maximum(starts[:, 0], begins)
        starts = starts.cummax(1).values
        if begins is not None:
            begins.copy_(starts[:, -1])
        drawing = is_begin | (self.code_of[ids] >= 0)
        since = (places - starts).clamp(0, self.config.picture_places - 1)
        return x + self.place_embedding(since).masked_fill(~drawing[..., None], 0.0).to(x.dtype)

    def text_logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """Score the ids of the text head."""
        return self.head(hidden)

    def image_logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """Score the image codes."""
        if self.config.heads == "decoupled":
            return self.image_head(hidden)
        if self.code_head is not None:
            return self.code_head(self.head, hidden)
        rows = self.image_ids if self.code_span is None else self.code_span
        return F.linear(hidden, self.head.weight[rows])

    def _losses(
        self, hidden: Float[Tensor, "b n d"], targets: Int[Tensor, "b n"], layout: Layout, z_loss: float
    ) -> dict[str, TokenLoss]:
        """Compute, for every modality, only the head that its targets need."""
        if not self.training and not len(layout.text) + len(layout.image):
            return {}
        flat, wanted = hidden.flatten(0, 1), targets.flatten()
        if self.config.heads == "shared":
            places = torch.cat([layout.text, layout.image])
            counts = len(layout.text), len(layout.image)
            rows = flat.index_select(0, places)
            text, image = token_losses(self.head, rows, wanted[places], counts, self.num_text_rows, z_loss)
        else:
            codes = self.code_of[wanted[layout.image]]
            rows = flat.index_select(0, layout.text)
            text = token_loss(self.head, rows, wanted[layout.text], self.num_text_rows, z_loss)
            rows = flat.index_select(0, layout.image)
            image = token_loss(self.image_head, rows, codes, len(self.image_ids), z_loss)
        return {"text": text, "image": image}


def _features(vectors: Float[Tensor, "k c"], width: int) -> Float[Tensor, "k d"]:
    """Return random Fourier features of vectors, of unit mean square."""
    directions = torch.randn(vectors.shape[1], width) * CODE_FREQUENCY
    return 2**0.5 * torch.cos(vectors @ directions + 2 * torch.pi * torch.rand(width))


def _span(ids: Int[Tensor, " k"]) -> slice | None:
    """Return the part of a table that ids are, None where they do not follow each other."""
    first = int(ids[0])
    follow = torch.arange(first, first + len(ids), device=ids.device)
    return slice(first, first + len(ids)) if torch.equal(ids, follow) else None


def _mlp(before: int, between: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(before, between), nn.GELU(), nn.Linear(between, after))
