import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from anymodal.pipeline import Pipeline
from anymodal.scoring.public import lmms


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str


class Base:
    """Stand in for lmms_eval.api.model.lmms."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


@pytest.fixture
def lmms_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for lmms-eval."""
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models", "lmms_eval.models.registry_v2")
    modules: dict[str, Any] = {name: ModuleType(name) for name in names}
    modules["lmms_eval.api.model"].lmms = Base
    modules["lmms_eval.models.registry_v2"].ModelManifest = Manifest
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    lmms.model_class.cache_clear()


@pytest.fixture(scope="module")
def folder(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    Pipeline(toy.parts()).save_pretrained(path)
    return path


@pytest.fixture
def model(lmms_eval: None, folder: Path) -> Any:
    made = lmms.model_class()(pretrained=str(folder), device="cpu", dtype="float32", batch_size="2")
    made.task_dict["toy"] = {"test": [{"image": Image.new("RGB", (16, 16), colour)} for colour in ("red", "blue")]}
    return made


def request(context: str, settings: Any, doc: int = 0, see: Callable[[Any], Any] = lambda doc: [doc["image"]]) -> Any:
    return SimpleNamespace(args=(context, settings, see, doc, "toy", "test"))


def test_lmms_eval_finds_the_class(lmms_eval: None, root: Path) -> None:
    entries = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    module, _, function = entries["anymodal"].partition(":")
    manifest = getattr(import_module(module), function)()
    module, _, name = manifest.simple_class_path.rpartition(".")
    found = getattr(import_module(module), name)
    assert (manifest.model_id, issubclass(found, Base), found.is_simple) == ("anymodal", True, True)


def test_requests_are_answered_in_order(model: Any) -> None:
    greedy = {
        "max_new_tokens": 6,
        "do_sample": False,
        "until": ["\n\n"],
        "num_beams": 1,
        "temperature": 0,
        "top_p": None,
    }
    answers = model.generate_until([
        request("What is it?", greedy),
        request("What is it?", {**greedy, "max_new_tokens": 3}),
        request("What is <image> here?", greedy, doc=1),
        request("What is it?", greedy, see=lambda _: None),
        request("What is it?" * 500, greedy),
    ])  # fmt: skip
    picture = model.task_dict["toy"]["test"][0]["image"]
    assert answers[0] == model.pipe.answer(picture, "What is it?", max_new_tokens=6, temperature=0.0)
    assert answers[1] == model.pipe.answer(picture, "What is it?", max_new_tokens=3, temperature=0.0)
    assert (len(answers), answers[4]) == (5, "")


def test_answers_end_at_the_first_stop(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmms, "write_text", lambda *_, **options: [f"t {options['temperature']}. And, on"])
    settings = {"do_sample": True, "temperature": 0.7, "until": [" on", ". "]}
    assert model.generate_until([request("?", settings)]) == ["t 0.7"]
    assert model.generate_until([request("?", {"until": ","})]) == ["t 0.0. And"]


def test_the_loss_is_what_the_option_of_the_least_value_needs(model: Any) -> None:
    picture = model.task_dict["toy"]["test"][0]["image"]
    text = model.pipe.answer(picture, "What?", max_new_tokens=2, temperature=0.0)
    (own, greedy), (other, _) = model.loglikelihood(
        [request("What?", f" {text}"), request("What?", lambda doc: "zzzzzz")]
    )
    assert own == pytest.approx(-model.pipe.log_likelihood([picture, "What?"], text))
    assert (greedy, own < other) == (True, True)


def test_what_cannot_be_done_is_told(model: Any) -> None:
    with pytest.raises(NotImplementedError, match="answers tasks of one round"):
        model.generate_until_multi_round([])
    with pytest.raises(ValueError, match="samples without beams, the task asks for 5"):
        model.generate_until([request("?", {"num_beams": 5})])
    with pytest.raises(ValueError, match="task toy shows str; anymodal looks at pictures alone"):
        model.generate_until([request("?", {}, see=lambda _: ["a.mp4"])])
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        lmms.Answerer(batch_size="auto")
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        _ = lmms.Other
