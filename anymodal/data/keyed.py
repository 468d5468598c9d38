"""Random numbers by key: what a sample draws depends on nothing but which one it is."""

from typing import Any

import numpy as np


class KeyedRandom:
    """Draw the numbers of `np.random.Philox(key=..., counter=...)` without making one, which takes six times as long.

    >>> KeyedRandom().at((7, 0), (1, 2)).random() == KeyedRandom().at((7, 0), (1, 2)).random()
    True
    """

    def __init__(self) -> None:
        """Make the generator that is set to a place again and again."""
        self._bits = np.random.Philox(0)
        self._generator = np.random.Generator(self._bits)

    def at(self, key: tuple[int, int], counter: tuple[int, int]) -> np.random.Generator:
        """Return a generator at the place of a key and a counter, numbers from 0 on; the next call moves it."""
        state: Any = {
            "bit_generator": "Philox",
            "state": {"counter": (*counter, 0, 0), "key": key},  # numbers go in ten times as fast as arrays
            "buffer": (0, 0, 0, 0),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        self._bits.state = state
        return self._generator
