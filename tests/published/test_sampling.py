"""Sampled codes against the logits of transformers, equal in distribution; and the defaults of published folders."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import anymodal
from anymodal import Pipeline
from anymodal.decoding.config import SamplingConfig
from anymodal.decoding.request import Request
from anymodal.published.layout import PublishedFolder
from anymodal.published.sampling import sampling_of

COUNT, GUIDANCE = 3000, 3.0


def first_codes(pipe: Pipeline, request: Request) -> Tensor:
    """Sample the first code of many pictures, each with a seed of its own."""
    grammar = request.grammar
    done = grammar.done.clone()
    done[grammar.next_state[grammar.start]] = True  # behind its first code a picture ends
    done[grammar.refused] = False
    short = replace(request, grammar=replace(grammar, done=done))
    drawn = pipe.sampler.generate([replace(short, seed=seed) for seed in range(COUNT)])
    return pipe.vocabulary.to_codes(torch.stack(drawn)[:, 0])


def assert_drawn_from(codes: Tensor, logits: Tensor) -> None:
    """Compare counts with the guided distribution by Pearson's chi-square, four standard deviations wide."""
    expected = COUNT * (logits[1] + GUIDANCE * (logits[0] - logits[1])).double().softmax(-1)
    counts = torch.bincount(codes, minlength=len(expected)).double()
    likely = expected > 5
    chi_square, freedom = ((counts - expected) ** 2 / expected)[likely].sum(), int(likely.sum())
    assert freedom > 5
    assert abs(float(chi_square) - freedom) < 4 * (2 * freedom) ** 0.5


def prompts(request: Request) -> Tensor:
    assert request.unconditional is not None
    assert len(request.unconditional.ids) == len(request.prompt.ids)
    return torch.stack((request.prompt.ids, request.unconditional.ids))


def test_janus(tmp_path: Path, fast_tokenizer: Any, spread: Any, parity: Any) -> None:
    model = parity("janus").write_tiny(tmp_path, fast_tokenizer, spread)
    pipe = anymodal.from_pretrained(tmp_path, device="cpu", dtype="float32")
    request = pipe.prompter.image_request(["a red apple"], None, SamplingConfig(guidance_scale=GUIDANCE), None, 0)
    with torch.no_grad():
        hidden = model.model.language_model(input_ids=prompts(request)).last_hidden_state[:, -1]
        logits = model.model.generation_head(hidden)
    assert_drawn_from(first_codes(pipe, request), logits)


def test_emu3(tmp_path: Path, fast_tokenizer: Any, spread: Any, parity: Any) -> None:
    pair = parity("emu3").write_tiny(tmp_path, fast_tokenizer, spread)
    sampling = SamplingConfig(guidance_scale=GUIDANCE)
    request = pair.pipe.prompter.image_request(["a red dog"], "a dog red", sampling, (4, 6), 0)
    with torch.no_grad():
        scores = pair.theirs(input_ids=prompts(request)).logits[:, -1].log_softmax(-1)  # as its guidance compares them
    assert_drawn_from(first_codes(pair.pipe, request), scores[:, pair.pipe.vocabulary.table()])


def written(folder: Path, **fields: Any) -> PublishedFolder:
    folder.mkdir(exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(fields), encoding="utf-8")
    return PublishedFolder.open(folder)


GREEDY: Any = {
    "image": {"temperature": 1.0, "guidance_scale": 5.0}, "text": {"temperature": 0.0},
}  # fmt: skip
CHOSEN: Any = {"image": {"top_k": 2048}, "text": {"temperature": 0.7, "top_p": 0.9}}


@pytest.mark.parametrize(
    ("layout", "fields", "text"),
    [
        (GREEDY, {}, {"temperature": 0.0}),
        (GREEDY, {"temperature": 0.3}, {"temperature": 0.0}),
        (GREEDY, {"do_sample": True}, {"temperature": 1.0}),
        (GREEDY, {"do_sample": True, "temperature": 0.3, "top_k": 7}, {"temperature": 0.3, "top_k": 7}),
        (CHOSEN, {"temperature": 0.3, "top_p": None}, {"temperature": 0.3, "top_p": 0.9}),
        (CHOSEN, {"do_sample": False, "temperature": 0.3}, {"temperature": 0.0, "top_p": 0.9}),
    ],
)
def test_published_defaults_of_text_are_read(layout: Any, fields: Any, text: Any, tmp_path: Path) -> None:
    found = sampling_of(written(tmp_path, guidance_scale=2.5, max_new_tokens=17, **fields), **layout)
    assert found == {"text": text, "image": {**layout["image"], "guidance_scale": 2.5}, "max_new_tokens": 17}
    assert layout["text"] in (GREEDY["text"], CHOSEN["text"]), "what a layout has must stay what it is"


def test_published_defaults_of_a_model_that_draws_are_of_pictures(tmp_path: Path) -> None:
    theirs = written(tmp_path, do_sample=True, top_k=64, top_p=0.8, max_new_tokens=50000)
    found = sampling_of(theirs, **CHOSEN, drawn=True)
    assert found == {"image": {"temperature": 1.0, "top_k": 64, "top_p": 0.8}, "text": CHOSEN["text"]}


def test_what_has_no_equal_here_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    neutral: Any = {"num_beams": 1, "repetition_penalty": 1.0, "min_p": None, "bad_words_ids": [], "top_h": None}
    sampling_of(written(tmp_path, **neutral, pad_token_id=3, transformers_version="5.0"), **GREEDY)
    assert not caplog.records
    sampling_of(written(tmp_path, num_beams=4, repetition_penalty=1.2), **GREEDY)
    assert "num_beams 4, repetition_penalty 1.2 has no equal here" in caplog.text
    assert str(tmp_path / "generation_config.json") in caplog.text


def test_a_folder_answers_as_its_file_says(tmp_path: Path, fast_tokenizer: Any, spread: Any, parity: Any) -> None:
    folder = tmp_path / "janus"
    parity("janus").write_tiny(folder, fast_tokenizer, spread)
    path = folder / "generation_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**fields, "do_sample": True, "top_p": 0.5, "max_new_tokens": 3}), encoding="utf-8")
    generation = anymodal.from_pretrained(folder, device="cpu", dtype="float32").generation
    assert (generation.text.temperature, generation.text.top_p, generation.max_new_tokens) == (1.0, 0.5, 3)
    assert generation.image.guidance_scale == 5.0
    path.write_text(json.dumps({**fields, "top_p": "half", "do_sample": True}), encoding="utf-8")
    with pytest.raises(ValueError, match="top_p must be a float, got 'half'"):
        anymodal.from_pretrained(folder, device="cpu", dtype="float32")
