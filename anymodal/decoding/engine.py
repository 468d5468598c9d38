"""The sampler: requests of any kind and length in one batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anymodal.decoding.choice import choose, guide, guide_three_ways
from anymodal.decoding.config import SamplingConfig
from anymodal.model.transformer import KVCache
from anymodal.model.unified import AnyModal
from anymodal.tokens.batch import pad
from anymodal.tokens.document import TokenSequence
from anymodal.tokens.grammar import UNBOUNDED, Grammar, stack_grammars

MAX_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one row of the sampler writes.

    `unconditional` is the prompt that guidance pushes away from, `pictures` the prompt's pictures alone, for three-way
    guidance; `image` and `text` say how codes and text are chosen.
    Sampling ends when the grammar is done, behind one of `stop_ids`, or after `max_new_tokens`.
    """

    prompt: TokenSequence
    grammar: Grammar
    image: SamplingConfig = SamplingConfig()
    text: SamplingConfig = SamplingConfig()
    unconditional: TokenSequence | None = None
    pictures: TokenSequence | None = None
    seed: int = 0
    max_new_tokens: int = 1024
    stop_ids: frozenset[int] = frozenset()

    @property
    def guided(self) -> bool:
        """Does this request need a second row."""
        return self.unconditional is not None and (self.image.guidance_scale != 1.0 or self.three_way)

    @property
    def three_way(self) -> bool:
        """Does this request need a third row."""
        return self.pictures is not None and self.image.image_guidance_scale is not None


@dataclass
class _Rows:
    """The rows of a running batch: conditional ones first, then the unconditional ones of guided requests.

    Last come those that see pictures alone; `three_way` are their places among the guided.
    """

    requests: Sequence[Request]
    grammar: Grammar
    state: Int[Tensor, " b"]
    positions: Int[Tensor, " b"]
    guided: Int[Tensor, " g"]
    three_way: Int[Tensor, " t"]
    written: list[list[int]] = field(default_factory=list)

    @property
    def beside(self) -> Int[Tensor, " r"]:
        """Give the request of every row behind the conditional ones."""
        return torch.cat((self.guided, self.guided[self.three_way]))


class Sampler:
    """Write what requests ask for with one model.

    The ids of a row depend on its request alone: noise is a function of (seed, position), so batches, orders and caches
    change nothing (in float64 exactly; in narrower types up to near-ties).
    """

    def __init__(self, model: AnyModal) -> None:
        """Sample from `model`."""
        self.model = model

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], on_step: Callable[[int], None] | None = None
    ) -> list[Int[Tensor, " n"]]:
        """Return the new ids of every request.

        Raises:
            ValueError: a prompt with what follows it does not fit the context.
            SamplingError: the logits of a row are unusable.
        """
        training = self.model.training
        self.model.eval()
        try:
            results: list[Tensor] = []
            for start in range(0, len(requests), MAX_ROWS):
                results += self._generate(requests[start : start + MAX_ROWS], on_step)
            return results
        finally:
            self.model.train(training)

    def _generate(self, requests: Sequence[Request], on_step: Callable[[int], None] | None) -> list[Tensor]:
        rows, sequences = self._rows(requests)
        longest = max(len(sequence.ids) for sequence in sequences)
        budgets = [self._budget(request) for request in requests]
        cache = KVCache(
            self.model.config.transformer,
            num_rows=len(sequences),
            capacity=longest + max(budgets),
            device=self.model.device,
            dtype=self.model.embedding.weight.dtype,
        )
        hidden = self._prefill(sequences, cache)
        active = torch.tensor([budget > 0 for budget in budgets], device=self.model.device)
        for step in range(max(budgets)):
            ids = self._choose(rows, hidden, active)
            rows.state = torch.where(active, rows.grammar.advance(rows.state, ids), rows.state)
            rows.positions = rows.positions + active
            for i, index in enumerate(ids.tolist()):
                if active[i]:
                    rows.written[i].append(index)
            done = rows.grammar.done[rows.state].tolist()
            for i, request in enumerate(requests):
                ended = done[i] or len(rows.written[i]) >= budgets[i] or rows.written[i][-1] in request.stop_ids
                active[i] = active[i] & (not ended)
            if on_step is not None:
                on_step(step)
            if not bool(active.any()):
                break
            everything = torch.cat((ids, ids[rows.beside]))
            hidden = self.model.step(everything[:, None], cache)[:, -1]
            cache.keep(torch.ones_like(cache.lengths), cache.longest)
        return [torch.tensor(written, dtype=torch.long) for written in rows.written]

    def _rows(self, requests: Sequence[Request]) -> tuple[_Rows, list[TokenSequence]]:
        device = self.model.device
        grammar, starts = stack_grammars([request.grammar for request in requests])
        guided = [i for i, request in enumerate(requests) if request.guided]
        three_way = [place for place, i in enumerate(guided) if requests[i].three_way]
        beside = [requests[i].unconditional for i in guided] + [requests[guided[place]].pictures for place in three_way]
        sequences = [request.prompt for request in requests] + [each for each in beside if each is not None]
        rows = _Rows(
            requests=requests,
            grammar=grammar.to(device),
            state=starts.to(device),
            positions=torch.tensor([len(request.prompt.ids) for request in requests], device=device),
            guided=torch.tensor(guided, dtype=torch.long, device=device),
            three_way=torch.tensor(three_way, dtype=torch.long, device=device),
            written=[[] for _ in requests],
        )
        return rows, sequences

    def _budget(self, request: Request) -> int:
        """Return how many ids a request may write; what the grammar bounds, such as a picture, is always finished.

        Raises:
            ValueError: the context cannot hold them.
        """
        longest = int(request.grammar.steps_left[request.grammar.start])
        bounded = longest < UNBOUNDED
        wanted = longest if bounded else request.max_new_tokens
        context, used = self.model.config.transformer.max_seq_len, len(request.prompt.ids)
        beside = [request.unconditional if request.guided else None, request.pictures if request.three_way else None]
        used = max([used, *(len(each.ids) for each in beside if each is not None)])
        if used + (wanted if bounded else 1) > context:
            raise ValueError(
                f"the prompt has {used} tokens and {wanted} are to follow, the context holds {context}; "
                "shorten the prompt."
            )
        return min(wanted, context - used)

    def _prefill(self, sequences: Sequence[TokenSequence], cache: KVCache) -> Float[Tensor, "b d"]:
        """Read all prompts at once, padded on the right; return the hidden states of their last tokens."""
        batch = pad(sequences, 0, self.model.look_tokens).to(self.model.device)
        counts = torch.tensor([len(sequence.ids) for sequence in sequences], device=self.model.device)
        pixels = batch.look_pixels
        hidden = self.model.step(
            batch.ids, cache, None if pixels is None else pixels.to(self.model.embedding.weight.dtype), batch.look_index
        )
        cache.keep(counts, int(counts.max()))
        return hidden[torch.arange(len(counts), device=counts.device), counts - 1]

    def _choose(self, rows: _Rows, hidden: Float[Tensor, "r d"], active: Bool[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Choose an id for every active row; the others get id 0, which nobody reads."""
        count = len(rows.requests)
        codes_next = rows.grammar.codes_next[rows.state]
        logits = self._logits(hidden, torch.cat((codes_next, codes_next[rows.beside])))
        conditional = logits[:count]
        if len(rows.guided):
            pushed = self._guided(rows, conditional[rows.guided], logits[count:], codes_next[rows.guided])
            conditional = conditional.index_copy(0, rows.guided, pushed)
        which = torch.nonzero(active).flatten()
        drawing = codes_next.tolist()
        settings = [rows.requests[i].image if drawing[i] else rows.requests[i].text for i in which.tolist()]
        seeds = torch.tensor([rows.requests[i].seed for i in which.tolist()], device=logits.device)
        allowed = rows.grammar.mask(rows.state[which])
        ids = choose(conditional[which], allowed, settings, seeds, rows.positions[which])
        return torch.zeros(count, dtype=torch.long, device=logits.device).index_copy(0, which, ids)

    def _guided(
        self, rows: _Rows, conditional: Float[Tensor, "g v"], beside: Float[Tensor, "r v"], codes: Bool[Tensor, " g"]
    ) -> Float[Tensor, "g v"]:
        """Guide the rows that want codes; `beside` are the logits of the rows behind the conditional ones."""
        images = [rows.requests[i].image for i in rows.guided.tolist()]
        scale = torch.where(codes, beside.new_tensor([image.guidance_scale for image in images]), 1.0)
        unconditional, pictures = beside.split([len(images), len(rows.three_way)])
        pushed = guide(conditional, unconditional, scale)
        if len(rows.three_way):
            which = rows.three_way
            chosen = beside.new_tensor([images[place].image_guidance_scale or 0.0 for place in which.tolist()])
            image_scale = torch.where(codes[which], chosen, 1.0)
            inner = guide_three_ways(conditional[which], pictures, unconditional[which], scale[which], image_scale)
            pushed = pushed.index_copy(0, which, inner)
        return pushed.masked_fill(conditional.isneginf(), -torch.inf)  # ids of the other head

    def _logits(self, hidden: Float[Tensor, "r d"], wants_codes: Bool[Tensor, " r"]) -> Float[Tensor, "r v"]:
        """Compute for every row only the head that its grammar asks for; other ids get -inf."""
        model = self.model
        logits = hidden.new_full((len(hidden), model.vocabulary.size), -torch.inf)
        drawing = torch.nonzero(wants_codes).flatten()
        writing = torch.nonzero(~wants_codes).flatten()
        if len(drawing):
            logits[drawing[:, None], model.image_ids[None]] = model.image_logits(hidden[drawing])
        if len(writing):
            logits[writing, : model.num_text_rows] = model.text_logits(hidden[writing])
        return logits
