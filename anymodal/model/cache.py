"""The key-value cache: preallocated, and every row has a length of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anymodal.model.config import TransformerConfig


@dataclass(frozen=True)
class SavedRow:
    """Keys and values [depth, kv_heads, n, head_dim] of a row that left the cache."""

    keys: Tensor
    values: Tensor


class KVCache:
    """Preallocated keys and values; every row has a length of its own.

    A forward pass reads and writes a window of neighbouring rows. `bucket` rounds what a window shows up to its
    multiple, so that shapes repeat; 0 shows no more than is filled.

    >>> cache = KVCache(TransformerConfig(), num_rows=2, capacity=32)
    >>> step = cache.reserve(3)
    >>> cache.keep(3)
    >>> cache.lengths.tolist(), step.places.tolist()
    ([3, 3], [[0, 1, 2], [0, 1, 2]])
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        num_rows: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        bucket: int = 0,
    ) -> None:
        """Reserve room for `capacity` tokens a row.

        Raises:
            MemoryError: there is no room for it.
        """
        shape = (config.depth, num_rows, config.num_kv_heads, capacity, config.head_dim)
        try:
            self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        except RuntimeError as error:  # what torch raises when an allocator has nothing left
            needed = 2 * torch.Size(shape).numel() * dtype.itemsize
            raise MemoryError(
                f"a cache of {num_rows} rows of {capacity} tokens takes {needed / 2**30:.1f} GiB, which {device} does "
                "not have; sample fewer rows at once (max_rows), or from shorter prompts."
            ) from error
        self.lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
        self.begins = torch.full((num_rows,), -1, dtype=torch.long, device=device)
        self.bucket = bucket
        self._filled = [0] * num_rows

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold."""
        return self.keys.shape[3]

    @property
    def num_rows(self) -> int:
        """Rows, in use or not."""
        return self.keys.shape[1]

    def filled(self, row: int) -> int:
        """Tokens that a row holds, known without asking the device."""
        return self._filled[row]

    def reserve(self, count: int, rows: slice = slice(None)) -> "CacheStep":
        """Take the next `count` places of a window of rows.

        Raises:
            ValueError: the cache is full.
        """
        filled = self._filled[rows]
        needed = max(filled) + count
        if needed > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens a row, {needed} are needed; make it larger.")
        lengths = self.lengths[rows]
        places = lengths[:, None].clone()
        if count > 1:
            places = places + torch.arange(count, device=lengths.device)
        shown = needed if not self.bucket else min(self.capacity, -(-needed // self.bucket) * self.bucket)
        even = not self.bucket and len(set(filled)) == 1
        fresh = even and filled[0] == 0
        visible = None
        if not (even and (fresh or count == 1)):
            visible = (torch.arange(shown, device=lengths.device) <= places[:, :, None])[:, None]
        return CacheStep(
            keys=self.keys[:, rows, :, :shown], values=self.values[:, rows, :, :shown], places=places,
            visible=visible, causal=fresh and count > 1, begins=self.begins[rows], start=filled[0] if even else None,
        )  # fmt: skip

    def keep(self, counts: int | Sequence[int], rows: slice = slice(None)) -> None:
        """Keep the first `counts` of the places taken last in a window; what is not kept is written over."""
        which = range(*rows.indices(self.num_rows))
        if isinstance(counts, int):
            self.lengths[rows].add_(counts)
            counts = [counts] * len(which)
        else:
            self.lengths[rows] += torch.tensor(counts, device=self.lengths.device)
        for row, count in zip(which, counts, strict=True):
            self._filled[row] += count

    def clear(self, row: int) -> None:
        """Forget what a row holds; what is no number there would reach its next owner through a weight of zero."""
        self.keys[:, row], self.values[:, row] = 0, 0
        self.lengths[row], self.begins[row], self._filled[row] = 0, -1, 0

    def copy(self, source: int, target: int) -> None:
        """Let one row hold what another holds."""
        count = self._filled[source]
        for kept in (self.keys, self.values):
            kept[:, target, :, :count] = kept[:, source, :, :count]
        self.lengths[target], self.begins[target] = self.lengths[source], self.begins[source]
        self._filled[target] = count

    def save(self, row: int) -> SavedRow:
        """Return a copy of what a row holds."""
        count = self._filled[row]
        keys, values = (kept[:, row, :, :count].clone() for kept in (self.keys, self.values))
        return SavedRow(keys, values)

    def load(self, row: int, saved: SavedRow, count: int, begin: int) -> None:
        """Let a row hold the first `count` tokens of a saved one, whose last picture begins at `begin` (-1: none)."""
        self.keys[:, row, :, :count] = saved.keys[:, :, :count]
        self.values[:, row, :, :count] = saved.values[:, :, :count]
        self.lengths[row], self.begins[row], self._filled[row] = count, begin, count

    def grown(self, config: TransformerConfig, *, num_rows: int, capacity: int) -> "KVCache":
        """Return a cache of this size that holds what this one holds.

        Raises:
            MemoryError: there is no room for it.
        """
        grown = KVCache(
            config, num_rows=num_rows, capacity=capacity, device=self.keys.device, dtype=self.keys.dtype,
            bucket=self.bucket,
        )  # fmt: skip
        rows, places = min(num_rows, self.num_rows), min(capacity, self.capacity)
        for new, old in ((grown.keys, self.keys), (grown.values, self.values)):
            new[:, :rows, :, :places] = old[:, :rows, :, :places]
        grown.lengths[:rows], grown.begins[:rows] = self.lengths[:rows], self.begins[:rows]
        grown._filled[:rows] = self._filled[:rows]
        return grown


@dataclass(frozen=True)
class CacheStep:
    """The places that one forward pass writes, and what its queries may see; None: all that is shown.

    `begins` are the places at which the last picture of each row began, -1 without one; `start` is the first place
    where it is the same for all rows.
    """

    keys: Tensor
    values: Tensor
    places: Int[Tensor, "b n"]
    visible: Tensor | None
    causal: bool
    begins: Int[Tensor, " b"]
    start: int | None = None

    def write(
        self, layer: int, keys: Float[Tensor, "b kv_heads n head_dim"], values: Float[Tensor, "b kv_heads n head_dim"]
    ) -> tuple[Float[Tensor, "b kv_heads m head_dim"], Float[Tensor, "b kv_heads m head_dim"]]:
        """Store keys and values of a layer, and return all that are shown."""
        kept = self.keys[layer], self.values[layer]
        if self.start is not None:
            end = self.start + self.places.shape[1]
            kept[0][:, :, self.start : end], kept[1][:, :, self.start : end] = keys, values
            return kept
        (_write_in_place if torch.compiler.is_compiling() else _write)(
            self.keys, self.values, keys, values, self.places, layer
        )
        return kept


def _write(keys: Tensor, values: Tensor, new_keys: Tensor, new_values: Tensor, places: Tensor, layer: int) -> None:
    rows = torch.arange(len(places), device=places.device)[:, None]
    for old, new in ((keys[layer], new_keys), (values[layer], new_values)):
        old[rows, :, places] = new.transpose(1, 2).to(old.dtype)


_write_in_place = torch.library.custom_op("anymodal::write_cache", _write, mutates_args=("keys", "values"))
"""What compilers do not look into: they would copy all of the cache a layer, since the layers share its memory."""
