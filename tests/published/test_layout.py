import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anymodal.published import layout as module
from anymodal.published.layout import PublishedFolder, no_memory, write_side_files
from anymodal.tokens.text import TextTokenizer

SPECIALS = ("s", "end", "draw", "drawn", "image")
TOKENIZER = TextTokenizer.learn(["a red apple"], vocab_size=300, specials=SPECIALS)
WANTED = {"bos": ("bos_token", "<missing>"), "boi": ("boi_token", "<draw>"), "user?": ("<|User|>",)}


def write(folder: Path, name: str, content: Any) -> PublishedFolder:
    (folder / name).write_text(json.dumps(content))
    return PublishedFolder.open(folder)


def test_a_folder_may_lack_a_config(tmp_path: Path) -> None:
    folder = PublishedFolder.open(tmp_path, allow_pickle=True)
    assert (folder.path, folder.config, folder.allow_pickle) == (tmp_path, {}, True)
    assert folder.json("generation_config.json") == {}
    assert folder.origin("janus").files == {}
    assert write(tmp_path, "config.json", {"model_type": "janus"}).config == {"model_type": "janus"}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is no JSON"):
        PublishedFolder.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"bos_token": "<s>", "boi_token": "<draw>"}),
        ("tokenizer_config.json", {"bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False}}),
        ("tokenizer_config.json", {"bos_token": "<s>", "extra_special_tokens": {"boi_token": "<draw>"}}),
        ("tokenizer_config.json", {"bos_token": "<s>", "extra_special_tokens": ["<draw>"]}),
        ("special_tokens_map.json", {"bos_token": {"content": "<s>"}, "additional_special_tokens": ["<draw>"]}),
    ],
    ids=["plain", "added-token", "extra", "extra-list", "map"],
)
def test_roles_are_read_in_every_form(tmp_path: Path, name: str, content: Any) -> None:
    roles = write(tmp_path, name, content).roles(TOKENIZER, WANTED)
    assert roles == {"bos": TOKENIZER.specials["s"], "boi": TOKENIZER.specials["draw"]}


def test_the_tokenizer_config_goes_before_the_map_and_names_before_spellings(tmp_path: Path) -> None:
    write(tmp_path, "special_tokens_map.json", {"bos_token": "<end>", "boi_token": "<drawn>"})
    folder = write(tmp_path, "tokenizer_config.json", {"bos_token": "<s>", "model_max_length": 10**30})
    assert folder.roles(TOKENIZER, WANTED) == {"bos": TOKENIZER.specials["s"], "boi": TOKENIZER.specials["drawn"]}


def test_roles_that_no_token_has_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, "tokenizer_config.json", {"bos_token": "<bos>", "boi_token": None})
    with pytest.raises(ValueError, match=r"has no token for 'bos': none of <bos>, <missing> is in its tokenizer.json"):
        folder.roles(TOKENIZER, WANTED)


@pytest.mark.parametrize(
    "settings",
    [{}, {"image_mean": None}, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 8},
     {"image_mean": [1.0] * 3, "image_std": [1.0] * 3}],
)  # fmt: skip
@pytest.mark.parametrize("place", ["processor_config.json", "preprocessor_config.json"])
def test_image_processors_are_read(tmp_path: Path, settings: dict[str, Any], place: str) -> None:
    content = {"image_processor": settings} if place == "processor_config.json" else settings
    assert write(tmp_path, place, content).image_processor() == settings


@pytest.mark.parametrize(
    ("mean", "deviation"),
    [([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]), ([0.5] * 3, [0.25] * 3), ([0.0] * 3, [1.0] * 3), ([0.5, 0.5, 1.0],) * 2,
     ([0.5], [0.5]), (0.5, 0.5), ("half", "half"), ({"red": 0.5}, {"red": 0.5})],
)  # fmt: skip
def test_other_normalisations_are_refused(tmp_path: Path, mean: Any, deviation: Any) -> None:
    folder = write(tmp_path, "preprocessor_config.json", {"image_mean": mean, "image_std": deviation})
    with pytest.raises(ValueError, match=r"must have image_mean and image_std 0.5, or both 1, .* another range"):
        folder.image_processor()


def test_side_files_go_out_as_they_came_in(toy: Any, tmp_path: Path) -> None:
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    theirs.mkdir()
    out.mkdir()
    TOKENIZER.save(theirs / "tokenizer.json")
    (theirs / "chat_template.jinja").write_bytes(b"{{ bos_token }}\r\n")
    (theirs / "secret.txt").write_text("not theirs to give")
    parts = toy.parts()
    parts.origin = write(theirs, "config.json", {"model_type": "janus"}).origin("janus")
    assert sorted(parts.origin.files) == ["chat_template.jinja", "tokenizer.json"]
    assert (parts.origin.layout, parts.origin.config) == ("janus", {"model_type": "janus"})
    write_side_files(parts, "janus", out, {"generation_config.json": {"eos": "é"}})
    for name in ("chat_template.jinja", "tokenizer.json"):
        assert (out / name).read_bytes() == (theirs / name).read_bytes()
    assert (out / "generation_config.json").read_text(encoding="utf-8") == '{\n  "eos": "é"\n}\n'
    write_side_files(parts, "emu3", out, {})
    assert (out / "tokenizer.json").read_bytes() == toy.text_tokenizer.read_bytes(), "another layout has its own"


def test_side_files_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "model").mkdir()
    template = tmp_path / "model" / "chat_template.jinja"
    template.symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"chat_template.jinja is a link that leads out of its folder"):
        PublishedFolder.open(tmp_path / "model").origin("janus")
    template.unlink()
    template.write_text("long")
    monkeypatch.setattr(module, "MAX_SIDE_BYTES", 3)
    with pytest.raises(ValueError, match=r"chat_template.jinja has 4 bytes, at most 3 are read"):
        PublishedFolder.open(tmp_path / "model").origin("janus")


def test_modules_take_no_memory() -> None:
    with no_memory():
        huge = nn.Linear(10**6, 10**6)
    assert huge.weight.shape == (10**6, 10**6)
    assert huge.weight.device.type == "meta"
    assert torch.zeros(1).device.type == "cpu", "the device is given back"
