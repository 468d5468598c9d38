import json
from pathlib import Path
from typing import Any

import pytest

from anymodal.model.folder import fingerprint_of
from anymodal.pipeline import from_pretrained
from anymodal.scoring.manifest import make_manifest


def test_a_result_can_be_made_again_from_it(toy: Any, tmp_path: Path) -> None:
    toy.parts().save(tmp_path / "model")
    pipe = from_pretrained(tmp_path / "model", dtype="float32")
    found = make_manifest(pipe, tmp_path / "model", {"bench": "names", "seed": 3, "data": None})
    assert json.loads(json.dumps(found)) == found
    model = found["model"]
    assert model["fingerprint"] == fingerprint_of(tmp_path / "model")
    assert model["image_tokenizer"] == pipe.image_tokenizer.fingerprint
    assert model["text_tokenizer"] == pipe.text_tokenizer.fingerprint
    assert (model["weights"], model["device"]) == ("float32", "cpu")
    assert found["settings"] == {"bench": "names", "seed": 3, "data": None}
    assert found["sampling"]["image"]["guidance_scale"] == pipe.generation.image.guidance_scale
    assert {"anymodal", "torch", "numpy"} <= set(found["versions"])
    assert found["data"]["split"] == "held-out"
    light = from_pretrained(tmp_path / "model", dtype="bfloat16")
    assert make_manifest(light, tmp_path / "model", {})["model"]["weights"] == "bfloat16"
    with pytest.raises(ValueError, match="there is no model"):
        make_manifest(pipe, tmp_path / "nowhere", {})
