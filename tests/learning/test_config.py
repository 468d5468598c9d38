import pytest

from anymodal.learning.config import OptimizerConfig, RunConfig


@pytest.mark.parametrize("name", ["steps", "batch_size", "log_every", "checkpoint_every"])
def test_counts_are_checked(name: str) -> None:
    assert getattr(RunConfig(), name) >= 1
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        RunConfig(**{name: 0})  # type: ignore[arg-type]


def test_the_rate_is_checked() -> None:
    with pytest.raises(ValueError, match="learning_rate must be positive, got 0"):
        OptimizerConfig(learning_rate=0.0)
