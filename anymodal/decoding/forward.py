"""The forward pass of a step: as it is, compiled, or replayed as a graph."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anymodal.decoding.config import EngineConfig
from anymodal.model.cache import CacheStep, KVCache
from anymodal.model.unified import AnyModal

BUCKET = 128  # compiled passes see so many places of the cache, or a multiple: few shapes


class Forward:
    """Append one id to every row in use, and return the hidden states behind them."""

    def __init__(self, model: AnyModal, config: EngineConfig) -> None:
        """Serve `model`."""
        self.model, self.config = model, config
        self.bucket = BUCKET if config.compile else 0
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        self._append: Callable[[Tensor, CacheStep], Tensor] = self._plain
        self.capture: Capture | None = None
        if config.compile and model.device.type == "cuda":
            self.capture = capture
        elif config.compile and model.transformer.stack is None:  # else one call passes all blocks, and is faster
            self._append = torch.compile(self._plain, dynamic=False)

    def __call__(self, ids: Int[Tensor, " r"], cache: KVCache, used: int) -> Float[Tensor, "r d"]:
        """Append `ids` to the first `used` rows."""
        window = slice(0, cache.num_rows if self.config.batch_invariant else used)
        missing = window.stop - used
        if missing:
            ids = torch.nn.functional.pad(ids, (0, missing))
        step = cache.reserve(1, window)
        if self.capture is not None:
            hidden = self._replayed(ids[:, None], step, self.capture)
        else:
            hidden = self._append(ids[:, None], step)[:, -1]
        cache.keep([1] * used + [0] * missing if missing else 1, window)
        return hidden[:used]

    def window(self, ids: Int[Tensor, "r n"], cache: KVCache, used: int) -> Float[Tensor, "r n d"]:
        """Append several ids to the first `used` rows; the caller says with `cache.keep` what stays."""
        return self._plain(ids, cache.reserve(ids.shape[1], slice(0, used)))

    def _plain(self, ids: Int[Tensor, "r n"], step: CacheStep) -> Float[Tensor, "r n d"]:
        return self.model.append(self.model.embed(ids), ids, step)

    def _replayed(self, ids: Int[Tensor, "r 1"], step: CacheStep, capture: "Capture") -> Float[Tensor, "r d"]:
        key = (len(ids), step.keys.shape[3], step.keys.data_ptr())
        if any(address != key[2] for *_, address in self._graphs):
            self._graphs.clear()  # the cache has moved
        if key not in self._graphs:
            self._graphs[key] = _Graph(self._plain, ids, step, capture)
        return self._graphs[key](ids, step)


Capture = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""Records a computation; returns where its result stands, and what computes it again."""


def capture(compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Record a computation as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm up: libraries take their workspaces
        compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute()
    return result, graph.replay


class _Graph:
    """One step that is captured once; its inputs are copied to where it reads them."""

    def __init__(
        self, append: Callable[[Tensor, CacheStep], Tensor], ids: Tensor, step: CacheStep, capture: Capture
    ) -> None:
        assert step.visible is not None, "a graph sees a bucket of the cache through a mask"
        self.ids, self.places, self.visible = ids.clone(), step.places.clone(), step.visible.clone()
        inside = CacheStep(
            keys=step.keys, values=step.values, places=self.places, visible=self.visible, causal=False,
            begins=step.begins,
        )  # fmt: skip
        self.hidden, self.replay = capture(lambda: append(self.ids, inside))

    def __call__(self, ids: Tensor, step: CacheStep) -> Tensor:
        assert step.visible is not None, "a graph sees a bucket of the cache through a mask"
        self.ids.copy_(ids)
        self.places.copy_(step.places)
        self.visible.copy_(step.visible)
        self.replay()
        return self.hidden[:, -1].clone()
