"""A model folder is read whole or not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anymodal.model import folder as module
from anymodal.model.folder import ModelFolder, fingerprint_of
from anymodal.tokens.document import Draw, Look


@pytest.fixture
def saved(toy: Any, tmp_path: Path) -> Path:
    toy.parts().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("changes", [{}, {"heads": "decoupled"}, {"tie_embeddings": True}, {"understanding": None}])
def test_round_trip_is_bit_equal(toy: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    parts = toy.parts(**changes)
    parts.generation, parts.card = {"max_new_tokens": 7}, "# mine\n"
    parts.save(tmp_path / "model")
    again = ModelFolder.load(tmp_path / "model")
    assert again.model.config == parts.model.config
    for name, tensor in parts.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    assert (again.model.head.weight is again.model.embedding.weight) == bool(changes.get("tie_embeddings"))
    assert again.model.vocabulary.fingerprint == parts.model.vocabulary.fingerprint
    assert again.text_tokenizer.fingerprint == parts.text_tokenizer.fingerprint
    assert again.image_tokenizer.fingerprint == parts.image_tokenizer.fingerprint
    assert (again.layout, again.template) == (parts.layout, parts.template)
    assert (again.generation, again.card) == ({"max_new_tokens": 7}, "# mine\n")
    assert not again.model.training
    again.save(tmp_path / "again")
    for path in sorted((tmp_path / "model").rglob("*.*")):
        assert (tmp_path / "again" / path.relative_to(tmp_path / "model")).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("changes", [{}, {"heads": "decoupled"}, {"tie_embeddings": True}])
def test_a_model_that_reads_codes_draws_what_it_drew(toy: Any, changes: dict[str, Any]) -> None:
    parts = toy.parts(**changes)
    reading = parts.reading_codes()
    assert parts.model.config.understanding is not None
    assert reading.model.config.understanding is None
    assert not any(name.startswith("understanding") for name in reading.model.state_dict())
    sequence = parts.encoder().encode(["a dog", Draw(torch.arange(16).view(4, 4))])
    before, after = (each.model.eval()(sequence.ids[None]) for each in (parts, reading))
    assert torch.equal(before.image_logits, after.image_logits)
    assert torch.equal(before.logits, after.logits)
    looked = reading.encoder().encode([Look(torch.arange(16).view(4, 4)), "What is it?"], complete=False)
    assert torch.isin(torch.arange(16) + int(reading.model.image_ids[0]), looked.ids).all()
    with pytest.raises(ValueError, match="reads pictures as codes already"):
        reading.reading_codes()


def test_the_fingerprint_is_of_what_draws_and_answers(saved: Path) -> None:
    before = fingerprint_of(saved)
    (saved / "README.md").write_text("# with scores\n")
    (saved / "generation_config.json").write_text("{}")
    assert fingerprint_of(saved) == before
    (saved / "model.safetensors").rename(saved / "other.safetensors")
    renamed = fingerprint_of(saved)
    (saved / "other.safetensors").rename(saved / "model.safetensors")
    assert fingerprint_of(saved) == before != renamed
    change_tensors(saved, lambda state: state["embedding.weight"].add_(1))
    assert fingerprint_of(saved) not in (before, renamed)


def change_tensors(folder: Path, change: Any) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def pickle_it(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def long_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((10**9).to_bytes(8, "little") + b"{}")


def swap_image_tokenizer(folder: Path) -> None:
    change_tensors(
        folder / "image_tokenizer", lambda state: state[next(name for name in state if "encoder" in name)].add_(1)
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: change_tensors(f, lambda s: s.pop("head.weight")), r"missing tensors \['head.weight'\]"),
        (lambda f: change_tensors(f, lambda s: s.update(x=torch.zeros(1))), r"unknown tensors \['x'\]"),
        (
            lambda f: change_tensors(f, lambda s: s.update({"transformer.norm.weight": torch.zeros(3)})),
            r"transformer.norm.weight: expected \[32\], got \[3\]",
        ),
        (pickle_it, "pytorch_model.bin is a pickle, which can run code, and is not read"),
        (long_header, "claims 1000000000 bytes"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0{abc}"), "no readable safetensors"),
        (swap_image_tokenizer, "was made with image tokenizer .* its codes would mean other pictures"),
        (lambda f: change_config(f, format=99), "format 99, this version reads 1"),
        (lambda f: (f / "config.json").write_text('{"format": 1}'), "lacks model, vocabulary"),
        (lambda f: (f / "config.json").write_text("{"), "is no JSON"),
        (lambda f: (f / "generation_config.json").unlink(), "generation_config.json is missing"),
        (lambda f: shutil.rmtree(f / "image_tokenizer"), "holds no image tokenizer"),
        (lambda f: (f / "tokenizer.json").unlink(), "there is no file"),
        (lambda f: change_config(f, layout={"kind": "fixed", "size": [[1, 1]]}), "did you mean 'sizes'"),
        (shutil.rmtree, "there is no model folder"),
    ],
)
def test_damage_is_named(saved: Path, damage: Any, message: str) -> None:
    damage(saved)
    with pytest.raises(ValueError, match=message):
        ModelFolder.load(saved)


def test_a_full_disk_leaves_the_old_folder(toy: Any, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in saved.rglob("*.*")}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", full)
        with pytest.raises(OSError, match="No space left.*free some space"):
            toy.parts(seed=1).save(saved)
    with monkeypatch.context() as patch:
        original = Path.rename
        patch.setattr(Path, "rename", lambda self, to: full() if self.suffix == ".partial" else original(self, to))
        with pytest.raises(OSError, match="could not save"):
            toy.parts(seed=1).save(saved)
    assert {path: path.read_bytes() for path in saved.rglob("*.*")} == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    toy.parts(seed=1).save(saved)
    assert (saved / "model.safetensors").read_bytes() != before[saved / "model.safetensors"]


def test_a_folder_of_other_things_is_not_replaced(toy: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="is no model folder and is not empty"):
        toy.parts().save(tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]
