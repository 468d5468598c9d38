"""Configs, tokenizers and what lies beside them, made by someone else: refused before they take memory or time."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Damage = Callable[[Path], Any]
Case = tuple[Damage, str]  # what is done to the folder, and what the error says
HUGE = 10**9

# what is huge -> where our folders say so, and where a published Janus does
SIZES: dict[str, tuple[str, str]] = {
    "depth": ("config.json model transformer depth", "config.json text_config num_hidden_layers"),
    "dim": ("config.json model transformer dim", "config.json text_config hidden_size"),
    "hidden-dim": ("config.json model transformer hidden_dim", "config.json text_config intermediate_size"),
    "heads": ("config.json model transformer num_heads", "config.json text_config num_attention_heads"),
    "head-dim": ("config.json model transformer head_dim", "config.json text_config head_dim"),
    "vision-depth": ("config.json model understanding depth", "config.json vision_config num_hidden_layers"),
    "vision-dim": ("config.json model understanding dim", "config.json vision_config hidden_size"),
    "vision-size": ("config.json model understanding image_size", "config.json vision_config image_size"),
    "connector": ("config.json model understanding connector_depth", "config.json vision_config depth"),
    "image-head": ("config.json model image_head_dim", "config.json vq_config projection_dim"),
    "image-embedding": ("config.json model image_embedding_dim", "config.json vq_config embed_dim"),
    "vocabulary": ("config.json vocabulary size", "config.json text_config vocab_size"),
    "codes": ("image_tokenizer/config.json quantizer codebook_size", "config.json vq_config num_embeddings"),
    "code-dim": ("image_tokenizer/config.json quantizer codebook_dim", "config.json vq_config embed_dim"),
    "blocks": ("image_tokenizer/config.json blocks", "config.json vq_config num_res_blocks"),
    "latents": ("image_tokenizer/config.json latent_channels", "config.json vq_config latent_channels"),
}


def edit(place: str, value: Any) -> Damage:
    """Change what a JSON file of the folder says at "FILE KEY KEY"."""

    def damage(folder: Path) -> None:
        name, *keys, last = place.split()
        data = json.loads((folder / name).read_text())
        inside = data
        for key in keys:
            inside = inside[key]
        inside[last] = value
        (folder / name).write_text(json.dumps(data))

    return damage


@pytest.mark.parametrize("places", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("value", [HUGE, HUGE**2, -1])
def test_sizes(refuse: Any, folder: Path, request: pytest.FixtureRequest, places: tuple[str, str], value: int) -> None:
    published = (folder / "tokenizer_config.json").is_file()
    edit(places[published], value)(folder)
    refuse(folder, "")


OURS: dict[str, Case] = {
    "run-of-ids": (edit("config.json vocabulary tables", {"image": [[320, HUGE]]}), "must hold at most"),
    "far-run-of-ids": (edit("config.json vocabulary tables", {"image": [[HUGE, 9]]}), "must have an id in [0, "),
    "runs-of-ids": (edit("config.json vocabulary tables", {"image": [320]}), "runs"),
    "specials": (edit("config.json vocabulary specials", {"boi": "1"}), "whole number"),
    "no-vocabulary": (edit("config.json vocabulary", []), "vocabulary"),
    "places": (edit("config.json model picture_places", HUGE), "picture_places"),
    "stages": (edit("image_tokenizer/config.json channels", [8] * 100_000), "channels"),
    "levels": (edit("image_tokenizer/config.json quantizer levels", [2] * 40), "levels"),
    "tokenizer-config": (lambda f: sparse(f / "image_tokenizer" / "config.json"), "at most"),
    "card": (lambda f: sparse(f / "README.md"), "at most"),
    "origin-pipe": (lambda f: beside(f, lambda o: os.mkfifo(o / "chat_template.jinja")), "is no regular file"),
    "origin-link": (lambda f: beside(f, lambda o: (o / "a.txt").symlink_to("/etc/hostname")), "leads out"),
    "origin-lacks": (lambda f: beside(f, lambda o: (o / "config.json").write_text("{}")), "layout"),
}
JANUS: dict[str, Case] = {
    "stages": (edit("config.json vq_config channel_multiplier", [1] * 100_000), "channels"),
    "list": (edit("config.json text_config", [1]), "what no such model is"),
    "word": (edit("config.json text_config hidden_size", "wide"), "wide"),
    "infinite": (edit("config.json text_config num_hidden_layers", float("inf")), "inf"),
    "null": (edit("config.json vision_config patch_size", None), "what no such model is"),
    "mean": (edit("processor_config.json image_processor", {"image_mean": 0.5}), "image_mean"),
    "colours": (edit("processor_config.json image_processor", {"image_mean": [0.5], "image_std": [0.5]}), "image_mean"),
    "tokenizer-config": (lambda f: sparse(f / "tokenizer_config.json"), "at most"),
    "link": (lambda f: (f / "chat_template.json").symlink_to("/etc/hostname"), "leads out of its folder"),
    "side-file": (lambda f: sparse(f / "chat_template.jinja"), "at most"),
}


def sparse(path: Path) -> None:
    """Make a file of 1 GB that takes no disk."""
    path.write_text("{")
    os.truncate(path, 10**9)


def beside(folder: Path, add: Callable[[Path], Any]) -> None:
    (folder / "origin").mkdir()
    (folder / "origin" / "config.json").write_text('{"layout": "janus", "config": {}}')
    add(folder / "origin")


@pytest.mark.parametrize("folder", ["ours"], indirect=True)
@pytest.mark.parametrize(("damage", "message"), OURS.values(), ids=OURS)
def test_our_folders(refuse: Any, folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    refuse(folder, message)


@pytest.mark.parametrize("folder", ["janus"], indirect=True)
@pytest.mark.parametrize(("damage", "message"), JANUS.values(), ids=JANUS)
def test_published_folders(refuse: Any, folder: Path, damage: Damage, message: str) -> None:
    (folder / "processor_config.json").write_text("{}")
    damage(folder)
    refuse(folder, message)


def config(text: str) -> Damage:
    return lambda folder: put(folder / "config.json", text)


def put(path: Path, text: str) -> None:
    path.write_text(text)


def tokenizer(place: str, value: Any) -> Damage:
    return edit(f"tokenizer.json {place}", value)


def instead(name: str, make: Callable[[Path], Any]) -> Damage:
    """Put something else in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


NO_IDS = json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}})
UNKNOWN = "is no model folder that is known here"
BOTH: dict[str, Case] = {
    "config-of-1-GB": (lambda f: sparse(f / "config.json"), "at most"),
    "config-deep": (config('{"a":' * 1_000_000), "is no JSON"),
    "config-of-lists": (config('{"a": [' + "[]," * 10_000_000 + "1]}"), "values"),
    "config-long-number": (config('{"model_type": ' + "1" * 5000 + "}"), "is no JSON"),
    "config-list": (config("[]"), "must hold a JSON object"),
    "config-empty": (config(""), "is no JSON"),
    "config-bytes": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "is no JSON"),
    "config-pipe": (instead("config.json", os.mkfifo), UNKNOWN),
    "config-device": (instead("config.json", lambda p: p.symlink_to("/dev/zero")), UNKNOWN),
    "config-loop": (instead("config.json", lambda p: p.symlink_to(p.name)), UNKNOWN),
    "tokenizer-missing": (instead("tokenizer.json", lambda p: None), "there is no file"),
    "tokenizer-pipe": (instead("tokenizer.json", os.mkfifo), "there is no file"),
    "tokenizer-device": (instead("tokenizer.json", lambda p: p.symlink_to("/dev/zero")), "there is no file"),
    "tokenizer-folder": (instead("tokenizer.json", Path.mkdir), "there is no file"),
    "tokenizer-of-1-GB": (lambda f: sparse(f / "tokenizer.json"), "at most"),
    "tokenizer-no-json": (lambda f: put(f / "tokenizer.json", "{"), "is no tokenizer"),
    "tokenizer-deep": (lambda f: put(f / "tokenizer.json", '{"model":' * 1_000_000), "is no tokenizer"),
    "tokenizer-no-model": (tokenizer("model", {}), "is no tokenizer"),
    "tokenizer-no-ids": (lambda f: put(f / "tokenizer.json", NO_IDS), "it must have 1 to"),
    "tokenizer-merges": (tokenizer("model merges", [["a", "zz"]]), "is no tokenizer"),
    "tokenizer-panics": (tokenizer("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
                         "is no tokenizer"),
    "tokenizer-of-huge-ids": (tokenizer("model vocab", {chr(33 + i): HUGE + i for i in range(90)}), "tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BOTH.values(), ids=BOTH)
def test_files(refuse: Any, folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    refuse(folder, message)


def code(folder: Path) -> None:
    """Put code into a folder, and ask for it as transformers understands it."""
    for name in ("modeling_evil.py", "configuration_evil.py", "__init__.py", "conftest.py", "setup.py"):
        (folder / name).write_text(f"open({str(folder.parent / 'owned')!r}, 'w')\n")
    edit("config.json auto_map", {"AutoModel": "modeling_evil.Evil", "AutoConfig": "configuration_evil.Evil"})(folder)


def test_code_beside_a_model_is_not_run(load: Any, folder: Path) -> None:
    code(folder)
    assert load(folder).error is None
    assert not (folder.parent / "owned").exists()


@pytest.mark.parametrize("folder", ["janus"], indirect=True)
def test_code_of_an_unknown_model_is_not_run(refuse: Any, folder: Path) -> None:
    code(folder)
    edit("config.json model_type", "evil")(folder)
    refuse(folder, UNKNOWN)
