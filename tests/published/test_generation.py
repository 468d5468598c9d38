"""generation_config.json of transformers, field by field."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import anymodal
from anymodal.configuration import from_dict
from anymodal.decoding.config import GenerationConfig, SamplingConfig
from anymodal.published.generation import read_generation
from anymodal.published.layout import PublishedFolder

IMAGE, TEXT = {"temperature": 1.0, "guidance_scale": 5.0}, {"temperature": 0.0}


def read(folder: Path, theirs: dict[str, Any], **changes: Any) -> GenerationConfig:
    (folder / "generation_config.json").write_text(json.dumps(theirs))
    how: dict[str, Any] = {"eos": 2, "image": IMAGE, "text": TEXT, **changes}
    return from_dict(GenerationConfig, read_generation(PublishedFolder(folder, {}), **how), "generation_config.json")


def test_fields_that_this_sampler_has_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = GenerationConfig(image=SamplingConfig(guidance_scale=5.0))
    silent = {
        "transformers_version": "5",
        "eos_token_id": 2,
        "use_cache": True,
        "generation_kwargs": {"boi_token_id": 7},
    }
    neutral = {
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "min_length": 0,
        "bad_words_ids": None,
        "early_stopping": True,
    }
    assert read(tmp_path, {**silent, **neutral}) == plain
    sampled = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 50,
        "top_p": 0.9,
        "guidance_scale": 3,
        "max_new_tokens": 9,
    }
    chosen = SamplingConfig(temperature=0.6, top_k=50, top_p=0.9)
    drawn = SamplingConfig(temperature=0.6, top_k=50, top_p=0.9, guidance_scale=3.0)
    assert read(tmp_path, sampled) == GenerationConfig(image=drawn, text=chosen, max_new_tokens=9)
    assert read(tmp_path, {"do_sample": True}).text == SamplingConfig()
    greedy = read(tmp_path, {"do_sample": False, "temperature": 0.6}, text={"temperature": 0.7, "top_p": 0.9})
    assert (greedy.text.temperature, greedy.image.temperature) == (0, 0)
    assert caplog.records == []


def test_a_file_about_text_alone_leaves_pictures_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = {"top_p": 0.5, "guidance_scale": 2.0}
    found = read(tmp_path, theirs, text={"temperature": 0.7, "top_p": 0.9}, draws=False)
    assert found.image == SamplingConfig(guidance_scale=5.0)
    assert found.text == SamplingConfig(temperature=0.7, top_p=0.5)
    assert [record.getMessage().split("json says ")[1] for record in caplog.records] == [
        "guidance_scale = 2.0, for which this sampler has no equal: it is left out, and outputs may differ from "
        "transformers'."
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4), ("repetition_penalty", 1.2), ("no_repeat_ngram_size", 3), ("min_p", 0.1), ("max_length", 99),
        ("suppress_tokens", [7]), ("eos_token_id", [2, 9]), ("stop_strings", ["."]), ("brand_new_field", 1),
    ],
)  # fmt: skip
def test_what_has_no_equal_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, value: object
) -> None:
    assert read(tmp_path, {name: value}) == GenerationConfig(image=SamplingConfig(guidance_scale=5.0))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{tmp_path / 'generation_config.json'} says {name} = {value}, for which" in record.getMessage()


def test_sampling_without_do_sample_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = read(tmp_path, {"temperature": 0.5, "top_k": 2048})
    assert found.text == SamplingConfig(temperature=0.0)
    assert (found.image.temperature, found.image.top_k) == (0.5, 2048)
    assert ["for text, without do_sample" in record.getMessage() for record in caplog.records] == [True, True]


@pytest.mark.parametrize(("name", "value"), [("temperature", "hot"), ("top_k", 2.5), ("max_new_tokens", True)])
def test_what_is_no_number_is_named(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{name} of generation_config.json must be a .*number, got {value!r}"):
        read(tmp_path, {"do_sample": True, name: value})


@pytest.mark.parametrize("layout", ["janus", "emu3", "chameleon"])
def test_folders_are_read_with_it(
    tmp_path: Path, layout: str, fast_tokenizer: Any, spread: Any, parity: Any, caplog: pytest.LogCaptureFixture
) -> None:
    parity(layout).write_tiny(tmp_path, fast_tokenizer, spread)
    file = tmp_path / "generation_config.json"
    theirs = json.loads(file.read_text())
    file.write_text(json.dumps({**theirs, "do_sample": True, "temperature": 0.3, "max_new_tokens": 7, "num_beams": 3}))
    pipe = anymodal.from_pretrained(tmp_path, device="cpu", dtype="float32")
    assert (pipe.generation.text.temperature, pipe.generation.max_new_tokens) == (0.3, 7)
    assert pipe.generation.image.temperature == (0.7 if layout == "chameleon" else 0.3)
    (record,) = caplog.records
    assert "num_beams = 3" in record.getMessage()
