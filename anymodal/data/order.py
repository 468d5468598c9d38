"""The order law: which samples step k of a run sees, as a pure function of the seed and the step."""

import hashlib
import heapq
import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

FINEST_RATIO = 100_000  # ratios without a smaller common denominator are rounded to this many parts

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Describe one source of samples: the sizes of its shards and its share of every batch.

    Ratios are weights: they need not add up to 1.
    """

    name: str
    shard_sizes: tuple[int, ...]
    ratio: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a source that could never fill a slot."""
        if any(size < 0 for size in self.shard_sizes) or sum(self.shard_sizes) == 0:
            raise ValueError(
                f"source {self.name!r} must hold at least one sample; its {len(self.shard_sizes)} shards hold "
                f"{sum(self.shard_sizes)}; look at its index or leave the source out"
            )
        if not (math.isfinite(self.ratio) and self.ratio > 0):
            raise ValueError(
                f"the ratio of source {self.name!r} must be a number above 0, got {self.ratio}; "
                "leave a source out that shall not be seen"
            )


class Slot(NamedTuple):
    """Name the sample that fills one place of a batch."""

    source: int  # position in the list of sources
    sample: int  # position in the source's index
    epoch: int  # which pass over the source this is
    number: int  # how many-th slot of the source since step 0


class Order:
    """Say which samples each step of a run sees: a pure function of (seed, step, rank, world, sources).

    Every prefix of the run holds each source to within one sample of its ratio, an epoch of a source holds each of its
    samples once, and a source is permuted in blocks of `cache_shards` shards, so that no more than that many shards
    are in use at once (twice as many where one block ends and the next begins).

    >>> order = Order([Source(name="emoji", shard_sizes=(3, 2))], batch_size=5, seed=0)
    >>> sorted(slot.sample for slot in order.step(7))
    [0, 1, 2, 3, 4]
    """

    def __init__(self, sources: Sequence[Source], *, batch_size: int, seed: int, cache_shards: int = 16) -> None:
        """Lay the pattern of sources out; `batch_size` is the global one, over all ranks."""
        if not sources:
            raise ValueError("an order needs at least one source, got none; name the shards to read")
        if len({source.name for source in sources}) < len(sources):
            raise ValueError(f"sources must have names of their own, got {[source.name for source in sources]}")
        if batch_size < 1 or cache_shards < 1:
            raise ValueError(f"batch_size and cache_shards must be at least 1, got {batch_size} and {cache_shards}")
        self.sources = tuple(sources)
        self.batch_size = batch_size
        self.seed = seed
        self._pattern = _pattern(_parts([source.ratio for source in sources]))
        self._places = [np.flatnonzero(self._pattern == source) for source in range(len(sources))]
        self._shuffles = [_Shuffle(source, seed, cache_shards) for source in sources]

    def step(self, step: int, *, rank: int = 0, world: int = 1) -> list[Slot]:
        """Return the slots of one rank: every `world`-th slot of the global batch, from `rank` on.

        Raises ValueError when the ranks cannot share the batch evenly.
        """
        if step < 0 or not 0 <= rank < world:
            raise ValueError(f"step must be >= 0 and 0 <= rank < world, got step {step}, rank {rank}, world {world}")
        if self.batch_size % world:
            raise ValueError(
                f"the global batch size must be a multiple of the number of ranks, got {self.batch_size} on {world}; "
                "choose another batch size"
            )
        slots: list[Slot] = []
        behind = 0  # slots of the sources before this one; a batch is sorted by source, so that ranks share each evenly
        for source, shuffle in enumerate(self._shuffles):
            first, last = self.count(source, step), self.count(source, step + 1)
            skip = (rank - behind) % world
            slots += (
                Slot(source, sample, number // shuffle.size, number)
                for number, sample in zip(
                    range(first + skip, last, world), shuffle.samples(first, last)[skip::world], strict=True
                )
            )
            behind += last - first
        return slots

    def count(self, source: int, step: int) -> int:
        """Return how many slots of a source lie before a step."""
        periods, rest = divmod(step * self.batch_size, len(self._pattern))
        places = self._places[source]
        return periods * len(places) + int(np.searchsorted(places, rest))


class _Shuffle:
    """Permute one source: shards within an epoch, then samples within blocks of shards."""

    def __init__(self, source: Source, seed: int, cache_shards: int) -> None:
        self.sizes = np.array(source.shard_sizes, dtype=np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.size = int(self.sizes.sum())
        self.cache_shards = cache_shards
        self.key = f"{seed}/{source.name}"
        self._epochs: OrderedDict[int, tuple[NDArray[np.int64], list[int]]] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int], NDArray[np.int64]] = OrderedDict()

    def samples(self, first: int, last: int) -> list[int]:
        """Return the samples of the slots [first, last) of this source."""
        found: list[int] = []
        while first < last:
            epoch, place = divmod(first, self.size)
            _, starts = self._epoch(epoch)
            block = bisect_right(starts, place) - 1
            inside = place - starts[block]
            piece = self._block(epoch, block)[inside : inside + last - first]
            found += piece.tolist()
            first += len(piece)
        return found

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], list[int]]:
        """Return the shards in the order of an epoch, and the place at which each block of them begins."""

        def lay_out() -> tuple[NDArray[np.int64], list[int]]:
            shards = permutation(len(self.sizes), f"{self.key}/{epoch}")
            ends = np.cumsum(self.sizes[shards])
            return shards, [0, *ends[self.cache_shards - 1 : -1 : self.cache_shards].tolist()]

        return _cached(self._epochs, epoch, lay_out, keep=2)

    def _block(self, epoch: int, block: int) -> NDArray[np.int64]:
        """Return the samples of a block in the order of an epoch."""

        def lay_out() -> NDArray[np.int64]:
            shards = self._epoch(epoch)[0][block * self.cache_shards : (block + 1) * self.cache_shards]
            sizes = self.sizes[shards]
            ends = np.cumsum(sizes)
            total = int(ends[-1])
            samples = np.repeat(self.starts[shards] - (ends - sizes), sizes) + np.arange(total)
            return samples[permutation(total, f"{self.key}/{epoch}/{block}")]

        return _cached(self._blocks, (epoch, block), lay_out, keep=2)


def permutation(size: int, key: str) -> NDArray[np.int64]:
    """Return a permutation of range(size) that depends on the key alone.

    It sorts raw Philox words (Salmon et al. 2011), whose stream numpy keeps from version to version, which it does not
    promise for `Generator.permutation`: a run must resume in the same order after an update. Each word ends in its own
    index, so that no two are equal.
    """
    bits = max(size - 1, 1).bit_length()
    philox = np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))
    words = (philox.random_raw(size) >> np.uint64(bits) << np.uint64(bits)) | np.arange(size, dtype=np.uint64)
    return (np.sort(words) & np.uint64((1 << bits) - 1)).astype(np.int64)


def _parts(ratios: Sequence[float]) -> list[int]:
    """Return whole numbers in proportion to the ratios, exactly where `FINEST_RATIO` parts are enough."""
    weights = [Fraction(ratio).limit_denominator(10**6) or Fraction(ratio) for ratio in ratios]
    shares = [weight / sum(weights) for weight in weights]
    common = math.lcm(*(share.denominator for share in shares))
    if common <= FINEST_RATIO:
        return [int(share * common) for share in shares]
    parts = [math.floor(share * FINEST_RATIO) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda place: parts[place] - shares[place] * FINEST_RATIO)
    for place in by_remainder[: FINEST_RATIO - sum(parts)]:
        parts[place] += 1
    if 0 in parts:
        raise ValueError(
            f"a ratio must be at least 1/{FINEST_RATIO} of all, got {list(ratios)}; raise the smallest or leave it out"
        )
    return parts


def _pattern(parts: Sequence[int]) -> NDArray[np.int16]:
    """Spread the sources over one period so that every prefix is within one slot of each ratio.

    The chairman assignment problem (Tijdeman 1980): the j-th slot of a source with share r must lie in
    [floor(j / r), ceil((j + 1) / r) - 1]; taking the open slot with the earliest deadline meets every one.
    """
    period = sum(parts)
    pattern = np.zeros(period, dtype=np.int16)
    waiting = [(0, source, 0) for source in range(len(parts))]  # (opens, source, how many before)
    open_slots: list[tuple[int, int, int]] = []  # (deadline, source, how many before)
    for place in range(period):
        while waiting and waiting[0][0] <= place:
            _, source, before = heapq.heappop(waiting)
            heapq.heappush(open_slots, (-(-(before + 1) * period // parts[source]) - 1, source, before))
        deadline, source, before = heapq.heappop(open_slots)
        assert place <= deadline, f"slot {place} of the pattern came after its deadline {deadline}"
        pattern[place] = source
        if before + 1 < parts[source]:
            heapq.heappush(waiting, ((before + 1) * period // parts[source], source, before + 1))
    return pattern


Key = TypeVar("Key")


def _cached(cache: OrderedDict[Key, Value], key: Key, make: Callable[[], Value], keep: int) -> Value:
    """Return a value from a cache of the `keep` last used, made when it is not there."""
    if key in cache:
        cache.move_to_end(key)
        return cache[key]
    value = cache[key] = make()
    while len(cache) > keep:
        cache.popitem(last=False)
    return value
