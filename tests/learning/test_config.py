from typing import Any

import pytest

from anymodal.learning.config import OptimizerConfig, RunConfig, StageConfig


@pytest.mark.parametrize("name", ["steps", "batch_size", "accumulate", "log_every", "checkpoint_every"])
def test_counts_are_checked(name: str) -> None:
    assert getattr(RunConfig(), name) >= 1
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        RunConfig(**{name: 0})  # type: ignore[arg-type]


def test_the_rate_is_checked() -> None:
    with pytest.raises(ValueError, match="learning_rate must be positive, got 0"):
        OptimizerConfig(learning_rate=0.0)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_the_average_is_checked(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"ema_decay must be in \[0, 1\), got {decay}"):
        RunConfig(ema_decay=decay)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": {"connector": 0.0}}, "rate of a part must be positive, got connector: 0.0; leave it out"),
        ({"trains": ("image_head",), "rates": {"connector": 0.5}}, "'connector' does not; add it to trains"),
        ({"text_weight": -1.0}, "text_weight must not be negative, got -1.0"),
        ({"z_loss": -1.0}, "z_loss must not be negative, got -1.0"),
    ],
)
def test_stages_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StageConfig(**options)
