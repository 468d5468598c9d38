from pathlib import Path
from typing import Any

import pytest

from anymodal.pipeline import Pipeline
from anymodal.scoring.public.resuming import claim, made_with


def test_results_of_another_model_or_seed_are_refused(tmp_path: Path, toy: Any) -> None:
    pipe, other = Pipeline(toy.parts()), Pipeline(toy.parts(seed=1))
    claim(tmp_path / "a", made_with(pipe, seed=0))
    claim(tmp_path / "a", made_with(pipe, seed=0))
    with pytest.raises(ValueError, match="holds results made with seed 0, this run has 1; take another folder"):
        claim(tmp_path / "a", made_with(pipe, seed=1))
    with pytest.raises(ValueError, match="holds results made with model"):
        claim(tmp_path / "a", made_with(other, seed=0))
