"""Reading prompts: in pieces, each prompt once, and not again what an earlier one has left."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anymodal.decoding.config import EngineConfig
from anymodal.model.cache import KVCache, SavedRow
from anymodal.model.unified import AnyModal
from anymodal.tokens.batch import pad
from anymodal.tokens.document import TokenSequence

INVARIANT_PIECE = 64


@dataclass(frozen=True)
class Prefix:
    """Ids that were read, the pictures among them by place and digest, and the keys and values that they gave."""

    ids: tuple[int, ...]
    looks: tuple[tuple[int, bytes], ...]
    row: SavedRow

    def common(self, ids: Sequence[int], looks: Sequence[tuple[int, bytes]], look_tokens: int) -> int:
        """Return how many leading ids another sequence shares, without the last one and without half a picture."""
        most = min(len(self.ids), len(ids) - 1)
        count = next((i for i in range(most) if self.ids[i] != ids[i]), most)
        mine, theirs = dict(self.looks), dict(looks)
        for start in sorted({*mine, *theirs}):
            if start < count and (mine.get(start) != theirs.get(start) or start + look_tokens > count):
                return start
        return count


class PrefixStore:
    """What finished rows have left: the next turn of a conversation begins with it.

    >>> PrefixStore(2).longest([1, 2, 3], [], 0) is None
    True
    """

    def __init__(self, size: int) -> None:
        """Keep the last `size` rows."""
        self.size = size
        self._kept: OrderedDict[tuple[tuple[int, ...], tuple[tuple[int, bytes], ...]], Prefix] = OrderedDict()

    def add(self, prefix: Prefix) -> None:
        """Keep a row, and forget the one used longest ago where there are too many."""
        self._kept[prefix.ids, prefix.looks] = prefix
        self._kept.move_to_end((prefix.ids, prefix.looks))
        while len(self._kept) > self.size:
            self._kept.popitem(last=False)

    def longest(
        self, ids: Sequence[int], looks: Sequence[tuple[int, bytes]], look_tokens: int
    ) -> tuple[Prefix, int] | None:
        """Return the kept row that shares the most leading ids, and how many; None where none shares any."""
        found = [(each.common(ids, looks, look_tokens), key) for key, each in self._kept.items()]
        count, key = max(found, key=lambda item: item[0], default=(0, None))
        if key is None or not count:
            return None
        self._kept.move_to_end(key)
        return self._kept[key], count


def piece_of(config: EngineConfig) -> int:
    """Return how many ids are read at once; in shapes that do not depend on the batch, short prompts are padded."""
    return min(config.prefill_tokens, INVARIANT_PIECE) if config.batch_invariant else config.prefill_tokens


def digests(sequence: TokenSequence) -> tuple[tuple[int, bytes], ...]:
    """Return where pictures are looked at, and a digest of each."""
    return tuple(
        (start, hashlib.blake2b(picture.detach().cpu().contiguous().numpy().tobytes(), digest_size=16).digest())
        for start, picture in sequence.looks
    )


class Reader:
    """Read prompts into rows of a cache."""

    def __init__(self, model: AnyModal, config: EngineConfig, kept: PrefixStore | None) -> None:
        """Read for `model`; `kept` is what earlier rows have left."""
        self.model, self.config, self.kept = model, config, kept
        self.read_tokens = 0  # ids that were computed, over all prompts

    def read(
        self, sequences: Sequence[TokenSequence], cache: KVCache, first: int
    ) -> tuple[list[int], Float[Tensor, "b d"]]:
        """Read sequences into the rows from `first` on; give the row of each, and by row the hidden states of last ids.

        Equal sequences are computed once.
        """
        keys = [(tuple(each.ids.tolist()), digests(each)) for each in sequences]
        distinct = sorted(dict.fromkeys(keys), key=lambda key: len(key[0]))
        prompts = [_Prompt(*key, sequences[keys.index(key)]) for key in distinct]
        parts, row = [], first
        for group in self._groups(prompts):
            parts.append(self._read(group, cache, row))
            row += len(group)
        rows, sources = [], []
        for key, earlier in zip(keys, _seen_before(keys), strict=True):
            source = first + distinct.index(key)
            if earlier:
                cache.copy(source, row)
            rows.append(row if earlier else source)
            sources += [source - first] if earlier else []
            row += earlier
        hidden = torch.cat(parts)
        return rows, torch.cat((hidden, hidden[torch.tensor(sources, dtype=torch.long, device=hidden.device)]))

    def _groups(self, prompts: Sequence["_Prompt"]) -> list[list["_Prompt"]]:
        """Return neighbours that are read together: as many as a piece holds where all are as long as the longest."""
        alone = self.config.batch_invariant or self.kept is not None
        groups: list[list[_Prompt]] = []
        for prompt in prompts:  # from short to long
            if alone or not groups or (len(groups[-1]) + 1) * len(prompt.ids) > piece_of(self.config):
                groups.append([])
            groups[-1].append(prompt)
        return groups

    def _read(self, prompts: Sequence["_Prompt"], cache: KVCache, first: int) -> Float[Tensor, "b d"]:
        window = slice(first, first + len(prompts))
        rest = [self._load(prompt, cache, first + i) for i, prompt in enumerate(prompts)]
        self.read_tokens += sum(len(each.ids) for each in rest)
        piece = piece_of(self.config)
        batch = pad(rest, 0, self.model.look_tokens).to(self.model.device)
        ids, pixels = batch.ids, batch.look_pixels
        if pixels is not None:
            pixels = pixels.to(self.model.embedding.weight.dtype)
        x = self.model.embed(ids, pixels, batch.look_index)
        if self.config.batch_invariant:  # every piece has the same shape
            missing = -ids.shape[1] % piece
            ids, x = torch.nn.functional.pad(ids, (0, missing)), torch.nn.functional.pad(x, (0, 0, 0, missing))
        last = torch.zeros_like(x[:, 0])
        for start in range(0, ids.shape[1], piece):
            columns = slice(start, min(start + piece, ids.shape[1]))
            size = columns.stop - columns.start
            counts = [min(max(len(each.ids) - start, 0), size) for each in rest]
            hidden = self.model.append(x[:, columns], ids[:, columns], cache.reserve(size, window))
            cache.keep(counts, window)
            for i, (each, count) in enumerate(zip(rest, counts, strict=True)):
                if 0 < count == len(each.ids) - start:
                    last[i] = hidden[i, count - 1]
        return last

    def _load(self, prompt: "_Prompt", cache: KVCache, row: int) -> TokenSequence:
        """Take from what is kept; return what is left to read."""
        cache.clear(row)
        tokens = self.model.look_tokens or 0
        found = self.kept.longest(prompt.ids, prompt.looks, tokens) if self.kept is not None else None
        if found is None:
            return prompt.sequence
        prefix, count = found
        boi = self.model.vocabulary.special("boi")
        begin = max((at for at, index in enumerate(prompt.ids[:count]) if index == boi), default=-1)
        cache.load(row, prefix.row, count, begin)
        looks = tuple((start - count, picture) for start, picture in prompt.sequence.looks if start >= count)
        return TokenSequence(prompt.sequence.ids[count:], prompt.sequence.loss[count:], looks)


@dataclass(frozen=True)
class _Prompt:
    ids: tuple[int, ...]
    looks: tuple[tuple[int, bytes], ...]
    sequence: TokenSequence


def _seen_before(keys: Sequence[object]) -> list[bool]:
    seen: set[object] = set()
    return [key in seen or bool(seen.add(key)) for key in keys]  # type: ignore[func-returns-value]
