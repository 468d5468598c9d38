"""Sampled codes against the logits of transformers: equal in distribution."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import anymodal
from anymodal import Pipeline
from anymodal.decoding.config import SamplingConfig
from anymodal.decoding.request import Request

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
