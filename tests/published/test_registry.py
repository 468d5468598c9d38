import json
from pathlib import Path
from typing import Any

import pytest
import torch

import anymodal
from anymodal.model.folder import EMBEDDED, ModelFolder
from anymodal.published.layout import Layout, PublishedFolder
from anymodal.published.registry import LAYOUTS, layout_of, load_image_tokenizer, load_published, save_published
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig

ROLES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "boi_token": "<boi>", "eoi_token": "<eoi>"}


@pytest.fixture
def parts(toy: Any) -> ModelFolder:
    """Make a model that a published layout can express."""
    made: ModelFolder = toy.parts(heads="decoupled", image_head_dim=16)
    torch.manual_seed(1)
    quantizer = QuantizerConfig(kind="l2-vq", codebook_size=16, codebook_dim=8, codebook_update="gradient")
    shape = {"channels": (32, 32, 32), "blocks": 1, "latent_channels": 8, "attention_stages": (2,)}
    config = ImageTokenizerConfig(architecture="diffusers", quantizer=quantizer, **shape)  # type: ignore[arg-type]
    made.image_tokenizer = ImageTokenizer(config).eval()
    return made


@pytest.fixture
def folder(parts: ModelFolder, tmp_path: Path) -> Path:
    save_published(parts, tmp_path / "janus", "janus")
    (tmp_path / "janus" / "tokenizer_config.json").write_text(json.dumps({**ROLES, "image_token": "<look>"}))
    return tmp_path / "janus"


def test_layouts_have_their_names() -> None:
    assert {"chameleon", "emu3", "janus", "janus-original"} <= set(LAYOUTS)
    assert all(name == layout.name for name, layout in LAYOUTS.items())


def test_round_trip_is_bit_equal(parts: ModelFolder, folder: Path, tmp_path: Path) -> None:
    again = load_published(folder)
    assert again.origin is not None
    assert again.origin.layout == "janus"
    for one, other in ((parts.model, again.model), (parts.image_tokenizer, again.image_tokenizer)):
        assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())
    save_published(again, tmp_path / "out", "janus")
    for path in folder.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert anymodal.from_pretrained(folder).model.config == again.model.config


def test_at_most_one_layout_fits(folder: Path) -> None:
    opened = PublishedFolder.open(folder)
    assert layout_of(opened) is LAYOUTS["janus"]
    assert [layout.name for layout in LAYOUTS.values() if layout.fits(opened)] == ["janus"]


@pytest.mark.parametrize("kind", ["bert", None, ["janus"], {"janus": 1}])
def test_unknown_models_are_named(tmp_path: Path, kind: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    assert layout_of(PublishedFolder.open(tmp_path)) is None
    with pytest.raises(ValueError, match=r"no model folder that is known here: .* model_type .*; known are .* janus"):
        load_published(tmp_path)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no model folder that is known here: it holds no config.json; known"):
        load_published(tmp_path)


def test_the_folder_of_a_run_names_its_model(toy: Any, tmp_path: Path) -> None:
    toy.parts().save(tmp_path / "model")
    (tmp_path / "model" / "image_tokenizer").rename(tmp_path / "image_tokenizer")
    with pytest.raises(ValueError, match=r"is the folder of a run; its model is .*model\."):
        load_published(tmp_path)
    with pytest.raises(ValueError, match=r"config.json is missing; it is in .*image_tokenizer\."):
        load_image_tokenizer(tmp_path)


def test_image_tokenizers_are_found(folder: Path, toy: Any, tmp_path: Path) -> None:
    embedded = ModelFolder.load(EMBEDDED / "emoji").image_tokenizer
    assert load_image_tokenizer(Path("emoji")).fingerprint == embedded.fingerprint
    assert load_image_tokenizer(folder).fingerprint == load_published(folder).image_tokenizer.fingerprint
    toy.parts().save(tmp_path / "ours")
    alone = ImageTokenizer.from_pretrained(toy.image_tokenizer).fingerprint
    assert load_image_tokenizer(tmp_path / "ours").fingerprint == alone
    assert load_image_tokenizer(toy.image_tokenizer).fingerprint == alone


def test_layouts_that_cannot_be_written_are_named(
    parts: ModelFolder, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="layout must be one of .*janus.*, got 'gpt'"):
        save_published(parts, tmp_path / "out", "gpt")
    with pytest.raises(ValueError, match="the layout 'janus' has decoupled heads"):
        save_published(toy.parts(), tmp_path / "out", "janus")
    with pytest.raises(ValueError, match="only models that came in it are written"):
        save_published(parts, tmp_path / "out", "janus-original")
    monkeypatch.setitem(LAYOUTS, "sealed", Layout("sealed", LAYOUTS["janus"].fits, LAYOUTS["janus"].load))
    with pytest.raises(ValueError, match="read from the layout 'sealed', not written in it"):
        save_published(parts, tmp_path / "out", "sealed")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_kept(parts: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    (tmp_path / "file").write_text("a file")
    for name in ("mine", "file"):
        with pytest.raises(ValueError, match="is not empty; export into a new folder"):
            save_published(parts, tmp_path / name, "janus")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "thesis.txt"]
    (tmp_path / "empty").mkdir()
    save_published(parts, tmp_path / "empty", "janus")
    assert (tmp_path / "empty" / "model.safetensors").is_file()


@pytest.mark.parametrize("spared", range(3))
def test_a_full_disk_leaves_nothing(
    parts: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spared: int
) -> None:
    calls = iter(range(10))

    def full(_: int) -> None:
        if next(calls) >= spared:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="could not save .*No space left.*free some space"):
            save_published(parts, tmp_path / "out", "janus")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: full(0))
        calls = iter(range(10, 20))
        with pytest.raises(OSError, match="could not save"):
            save_published(parts, tmp_path / "out", "janus")
    assert not list(tmp_path.rglob("*.*"))
    save_published(parts, tmp_path / "out", "janus")
    assert (tmp_path / "out" / "config.json").is_file()
