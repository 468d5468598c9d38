"""What a published `generation_config.json` says of sampling, as the defaults of a model folder of ours."""

import logging
from collections.abc import Mapping
from typing import Any

from anymodal.published.layout import PublishedFolder

FILE = "generation_config.json"
SHARED = ("temperature", "top_k", "top_p")
UNKNOWN: Mapping[str, Any] = {
    "bad_words_ids": None, "begin_suppress_tokens": None, "diversity_penalty": 0.0, "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None, "force_words_ids": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "min_length": 0, "min_new_tokens": 0, "min_p": 0.0, "no_repeat_ngram_size": 0,
    "num_beam_groups": 1, "num_beams": 1, "penalty_alpha": 0.0, "repetition_penalty": 1.0, "sequence_bias": None,
    "stop_strings": None, "suppress_tokens": None, "top_h": None, "typical_p": 1.0, "watermarking_config": None,
}  # fmt: skip
"""Fields that change what transformers writes and have no equal here, and the values that change nothing."""

log = logging.getLogger(__name__)


def sampling_of(
    folder: PublishedFolder, *, image: Mapping[str, Any], text: Mapping[str, Any], drawn: bool = False
) -> dict[str, Any]:
    """Return sampling defaults: those of the layout, `image` and `text`, with what the folder's file says instead.

    Temperature, top-k and top-p are of text, or where `drawn` of pictures, guidance is of pictures always; tokens are
    counted of text alone. As in transformers, `do_sample: false` takes the most likely ids, and without it a layout
    that does so goes on. A warning names what has no equal here.
    """
    theirs = folder.json(FILE)
    found: dict[str, Any] = {"image": dict(image), "text": dict(text)}
    own = found["image" if drawn else "text"]
    if theirs.get("do_sample") is False:
        own["temperature"] = 0.0
    elif theirs.get("do_sample") or own.get("temperature", 1.0) > 0:
        own["temperature"] = own.get("temperature") or 1.0
        own.update({name: theirs[name] for name in SHARED if theirs.get(name) is not None})
    if theirs.get("guidance_scale") is not None:
        found["image"]["guidance_scale"] = theirs["guidance_scale"]
    strange = {
        name: theirs[name]
        for name, neutral in UNKNOWN.items()
        if theirs.get(name) not in (None, neutral, [], {}, False)
    }
    if strange:
        told = ", ".join(f"{name} {value}" for name, value in strange.items())
        log.warning("%s: %s has no equal here and is left out.", folder.path / FILE, told)
    limit = {} if drawn or theirs.get("max_new_tokens") is None else {"max_new_tokens": theirs["max_new_tokens"]}
    return {**found, **limit}
