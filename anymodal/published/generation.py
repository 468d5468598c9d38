"""How a published folder samples: transformers' generation_config.json, read as far as this sampler has the same."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from anymodal.published.layout import PublishedFolder

NAME = "generation_config.json"
CHOICE = ("temperature", "top_k", "top_p")
WHOLE = ("top_k", "max_new_tokens")
READ = {*CHOICE, "do_sample", "max_new_tokens", "guidance_scale"}
NEUTRAL: dict[str, float] = {
    "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "repetition_penalty": 1, "length_penalty": 1,
    "encoder_repetition_penalty": 1, "diversity_penalty": 0, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0,
    "min_length": 0, "min_new_tokens": 0, "min_p": 0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "penalty_alpha": 0,
}  # fmt: skip
"""At these values, or as None, False or empty, a field changes nothing."""
SILENT = {
    "transformers_version", "_from_model_config", "bos_token_id", "pad_token_id", "decoder_start_token_id",
    "generation_kwargs", "use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size",
    "compile_config", "disable_compile", "low_memory", "continuous_batching_config", "return_dict_in_generate",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "renormalize_logits",
    "early_stopping", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
}  # fmt: skip
"""What changes how something is computed or told, not what is sampled; early stopping is of beams alone."""


def read_generation(
    folder: PublishedFolder, *, eos: int, image: Mapping[str, Any], text: Mapping[str, Any], draws: bool = True
) -> dict[str, Any]:
    """Return a layout's defaults with what the folder's file says instead; what it says beyond that is logged.

    Where the layout does not draw in transformers (`draws`), the file is about text alone. Text is sampled if the file
    says so, or the layout's own default is; `eos` is the id that ends it here.

    Raises:
        ValueError: a field is not the number that it must be.
    """
    theirs = {key: value for key, value in folder.json(NAME).items() if value is not None}
    found: dict[str, Any] = {"image": dict(image), "text": _chosen(theirs, text)}
    if draws:
        found["image"] = _chosen(theirs, image)
        if "guidance_scale" in theirs:
            found["image"]["guidance_scale"] = _number(theirs, "guidance_scale")
    if "max_new_tokens" in theirs:
        found["max_new_tokens"] = _number(theirs, "max_new_tokens")
    left = [*_without_equal(theirs, eos), *(["guidance_scale"] if "guidance_scale" in theirs and not draws else [])]
    if found["text"].get("temperature") == 0 and "do_sample" not in theirs:
        left += [name for name in CHOICE if name in theirs]
    for name in left:
        without = " for text, without do_sample" if name in CHOICE else ", for which this sampler has no equal"
        logging.getLogger(__name__).warning(
            "%s says %s = %s%s: it is left out, and outputs may differ from transformers'.",
            folder.path / NAME, name, theirs[name], without,
        )  # fmt: skip
    return found


def _chosen(theirs: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Return how ids are chosen: greedily where the file says so, or by default where it does not speak of sampling."""
    if theirs.get("do_sample") is False:
        return {**default, "temperature": 0.0}
    greedy = default.get("temperature") == 0
    if greedy and not theirs.get("do_sample"):
        return dict(default)
    given = {name: _number(theirs, name) for name in CHOICE if name in theirs}
    return {**default, **({"temperature": 1.0} if greedy else {}), **given}


def _number(theirs: Mapping[str, Any], name: str) -> int | float:
    value, whole = theirs[name], name in WHOLE
    if not isinstance(value, int | float) or isinstance(value, bool) or (whole and not float(value).is_integer()):
        what = "a whole number" if whole else "a number"
        raise ValueError(f"{name} of {NAME} must be {what}, got {value!r}; correct the file, or leave the field out.")
    return int(value) if whole else float(value)


def _without_equal(theirs: Mapping[str, Any], eos: int) -> Iterable[str]:
    """Yield the fields that change what transformers samples, and nothing here."""
    for name, value in theirs.items():
        idle: tuple[Any, ...] = (eos, [eos]) if name == "eos_token_id" else (NEUTRAL.get(name), False, "", [], {})
        if name not in READ | SILENT and value not in idle:
            yield name
