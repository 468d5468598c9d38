import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from anymodal.data.keyed import KeyedRandom

BIG = st.integers(0, 2**63 - 1)


@settings(deadline=None)
@given(key=st.tuples(BIG, BIG), counter=st.tuples(BIG, BIG), before=st.integers(0, 9))
def test_numbers_are_those_of_numpy(key: tuple[int, int], counter: tuple[int, int], before: int) -> None:
    random = KeyedRandom()
    random.at((1, 2), (3, 4)).integers(100, size=before, dtype=np.uint32)  # leaves half a number behind
    reference = np.random.Generator(np.random.Philox(key=list(key), counter=[*counter, 0, 0]))
    mine = random.at(key, counter)
    assert mine.random() == reference.random()
    assert (
        mine.integers(1000, size=5, dtype=np.uint32).tolist()
        == reference.integers(1000, size=5, dtype=np.uint32).tolist()
    )
    assert mine.choice(9, size=4, replace=False).tolist() == reference.choice(9, size=4, replace=False).tolist()


def test_it_goes_to_other_processes() -> None:
    copy = pickle.loads(pickle.dumps(KeyedRandom()))
    assert copy.at((7, 1), (0, 5)).random() == KeyedRandom().at((7, 1), (0, 5)).random()
