import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from anymodal.learning.config import OptimizerConfig, RunConfig
from anymodal.learning.settings import NAME, keep_settings


def sections(steps: int = 8, rate: float = 0.1, name: Any = "adamw", **changes: Any) -> dict[str, Any]:
    optimizer = OptimizerConfig(learning_rate=rate, name=name)
    return {"parts": {"dim": 8}, "optimizer": optimizer, "run": RunConfig(steps=steps), **changes}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run of 8 steps that has taken 4."""
    keep_settings(tmp_path, sections())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000004.ckpt").touch()
    return tmp_path


def test_settings_are_kept_beside_the_run(begun: Path) -> None:
    kept = yaml.safe_load((begun / NAME).read_text())
    assert (kept["parts"], kept["run"]["steps"], kept["optimizer"]["betas"]) == ({"dim": 8}, 8, [0.9, 0.95])
    assert [path.name for path in sorted(begun.iterdir())] == ["checkpoints", NAME]


def test_a_run_without_a_checkpoint_may_begin_anew(tmp_path: Path) -> None:
    keep_settings(tmp_path, sections())
    keep_settings(tmp_path, sections(parts={"dim": 16}))
    assert yaml.safe_load((tmp_path / NAME).read_text())["parts"] == {"dim": 16}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"run": RunConfig(steps=8, strategy="fsdp")}, "run.strategy was ddp, now is fsdp"),
        ({"parts": {"dim": 16}}, "parts.dim was 8, now is 16"),
        ({"name": "muon"}, "optimizer.name was adamw, now is muon"),
    ],
)
def test_another_run_is_refused(begun: Path, changes: dict[str, Any], text: str) -> None:
    kept = (begun / NAME).read_text()
    with pytest.raises(ValueError, match=f"holds another run: {text}; choose another --out"):
        keep_settings(begun, sections(**changes))
    assert (begun / NAME).read_text() == kept


def test_a_run_that_goes_on_tells_what_changes(begun: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="anymodal"):
        keep_settings(begun, sections(steps=16))
        assert not caplog.messages
        keep_settings(begun, sections(rate=0.2))
    assert caplog.messages == [
        "this run goes on from step 4 with other settings: optimizer.learning_rate was 0.1, now is 0.2"
    ]


def test_a_complete_run_stays_what_it_is(begun: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="anymodal"):
        keep_settings(begun, sections(steps=4))
    assert caplog.messages == ["all 4 steps were taken before; more run.steps go on from there"]
    with pytest.raises(
        ValueError, match="has taken its 4 steps already, but optimizer.learning_rate was 0.1, now is 0.2"
    ):
        keep_settings(begun, sections(steps=4, rate=0.2))
    with pytest.raises(ValueError, match="has taken its 4 steps already, but run.steps is 3; choose another --out"):
        keep_settings(begun, sections(steps=3))
