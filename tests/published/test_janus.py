import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import anymodal
from anymodal import Draw, Look, Pipeline, Turn
from anymodal.data.pictures import to_pixels
from anymodal.decoding.config import SamplingConfig
from anymodal.decoding.request import Request
from anymodal.tokens.grammar import compile_grammar

GRID: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "one-kv-head": {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "wide-heads": {"head_dim": 20},
    "untied": {"tied": False},
    "deep-connector": {"depth": 3, "tied": False},
    "patches": {"patch": 4},
    "specials-last": {"specials_last": True},
    "vq": {"channels": [1, 2, 2, 4], "num_res_blocks": 2},
}
EXTRA = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
TEXT_KEYS = ("num_key_value_heads", "rope_parameters", "attention_bias", "mlp_bias", "head_dim")
VOCAB = 330


@dataclass(frozen=True)
class Pair:
    """The same weights in transformers and here."""

    theirs: Any
    pipe: Pipeline
    folder: Path


def write_tiny(folder: Path, fast_tokenizer: Any, spread: Any, *, roles: bool = True, **how: Any) -> Any:
    """Let transformers write a tiny Janus and return its model."""
    from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    tokens = [BOS, EOS, PAD, *EXTRA.values(), *(["<|User|>", "<|Assistant|>"] if roles else [])]
    early, late = ([], tokens) if how.get("specials_last") else (tokens, [])
    tokenizer = fast_tokenizer(early, EXTRA, 300, late, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    patch, size = how.get("patch", 8), 32
    text = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, **{key: how[key] for key in TEXT_KEYS if key in how},
    }  # fmt: skip
    config = JanusConfig(
        text_config=text,
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": size,
            "patch_size": patch, "projection_dim": 32, "num_image_tokens": (size // patch) ** 2,
            "depth": how.get("depth", 2),
        },
        vq_config={
            "embed_dim": 8, "num_embeddings": 64, "latent_channels": 16, "base_channels": 32, "projection_dim": 32,
            "channel_multiplier": how.get("channels", [1, 1, 2, 2][: int(np.log2(patch)) + 1]),
            "num_res_blocks": how.get("num_res_blocks", 1), "image_token_embed_dim": 32, "num_hidden_layers": 2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
        tie_word_embeddings=how.get("tied", True),
    )  # fmt: skip
    model = JanusForConditionalGeneration(config).eval()
    spread(model, 3)
    codebook = model.model.vqmodel.quantize.embedding.weight.data
    codebook /= codebook.norm(dim=1, keepdim=True)  # else transformers encodes with other vectors than it decodes
    model.generation_config.generation_kwargs = {"boi_token_id": tokenizer.convert_tokens_to_ids("<begin_of_image>")}
    model.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    images = JanusImageProcessorPil(size={"height": size, "width": size}, min_size=14, image_mean=half, image_std=half)
    JanusProcessor(images, tokenizer, num_image_tokens=(size // patch) ** 2).save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=GRID)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, fast_tokenizer: Any, spread: Any
) -> Pair:
    folder = tmp_path_factory.mktemp("published") / "janus"
    model = write_tiny(folder, fast_tokenizer, spread, **GRID[request.param])
    return Pair(model, anymodal.from_pretrained(folder, device="cpu", dtype="float32"), folder)


def pixels(image: Image.Image) -> Tensor:
    return to_pixels(image, image.height, image.width)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).abs().max() / theirs.abs().max()).detach())


def test_logits_and_loss_of_answers_agree(pair: Pair, noise_picture: Callable[..., Image.Image]) -> None:
    sequence = pair.pipe.encoder.encode([Look(pixels(noise_picture())), "What is this?", " a dog"])
    batch = pair.pipe._batch([sequence])
    out = pair.pipe.model(batch)
    labels = sequence.ids.where(sequence.loss, -100)[None]
    with torch.no_grad():
        theirs = pair.theirs(input_ids=batch.ids, pixel_values=batch.look_pixels, labels=labels)
    assert relative(out.logits, theirs.logits) < 1e-4
    assert torch.equal(out.logits.argmax(-1), theirs.logits.argmax(-1))
    torch.testing.assert_close(out.losses["text"].mean, theirs.loss, atol=1e-5, rtol=1e-5)


def test_image_logits_agree(pair: Pair, noise_picture: Callable[..., Image.Image]) -> None:
    model, pipe = pair.theirs, pair.pipe
    batch = pipe.prepare([["a red apple", Draw(noise_picture(1))]])
    out = pipe.model(batch)
    codes = pipe.image_tokenizer.encode(pixels(noise_picture(1))[None]).flatten(1)
    drawn = pipe.vocabulary.is_code(batch.ids)
    with torch.no_grad():
        embedded = model.get_input_embeddings()(batch.ids.masked_fill(drawn, 0))
        embedded[drawn] = model.prepare_embeddings_for_image_generation(codes)[0]
        hidden = model.model.language_model(inputs_embeds=embedded).last_hidden_state
        theirs = model.model.generation_head(hidden)
    assert relative(out.image_logits, theirs) < 1e-4
    assert torch.equal(out.image_logits.argmax(-1), theirs.argmax(-1))


def test_codes_and_pixels_agree(pair: Pair, noise_picture: Callable[..., Image.Image]) -> None:
    seen = torch.stack([pixels(noise_picture(seed)) for seed in range(3)])
    with torch.no_grad():
        theirs = pair.theirs.model.vqmodel.encode(seen).image_tokens.view(3, -1)
        shown = pair.theirs.decode_image_tokens(theirs).permute(0, 3, 1, 2)
    codes = pair.pipe.image_tokenizer.encode(seen)
    assert torch.equal(codes.flatten(1), theirs)
    assert len(codes.unique()) > 1
    torch.testing.assert_close(pair.pipe.image_tokenizer.decode(codes), shown.clamp(-1, 1), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("guidance", [2.0, 5.0])
def test_a_greedy_picture_is_the_same_code_for_code(pair: Pair, guidance: float) -> None:
    pipe = pair.pipe
    request = pipe.prompter.image_request(
        ["a red apple"], None, SamplingConfig(temperature=0.0, guidance_scale=guidance), None, 0
    )
    prompt = request.prompt.ids[None]
    theirs = pair.theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), generation_mode="image", do_sample=False,
        guidance_scale=guidance, use_cache=True,
    )  # fmt: skip
    ids = pipe.sampler.generate([request])[0]
    assert torch.equal(pipe.prompter.codes_of(ids).flatten(), theirs[0])


def test_64_greedy_tokens_are_the_same(pair: Pair, noise_picture: Callable[..., Image.Image]) -> None:
    pipe = pair.pipe
    prompt = pipe.encoder.encode([Look(pixels(noise_picture(2))), "What is this?"], complete=False)
    batch = pipe._batch([prompt])
    grammar = compile_grammar(pipe.vocabulary, pipe.parts.layout, "text", text_tokenizer=pipe.text_tokenizer)
    grammar.allowed[:, grammar.class_of[pipe.vocabulary.special("eos")]] = False
    allowed = grammar.mask(torch.tensor([grammar.start]))[0]
    theirs = pair.theirs.generate(
        input_ids=batch.ids, pixel_values=batch.look_pixels, attention_mask=torch.ones_like(batch.ids),
        max_new_tokens=64, do_sample=False, suppress_tokens=torch.nonzero(~allowed[:VOCAB]).flatten().tolist(),
    )[0, batch.ids.shape[1] :]  # fmt: skip
    request = Request(prompt=prompt, grammar=grammar, text=SamplingConfig(temperature=0.0), max_new_tokens=64)
    ours = pipe.sampler.generate([request])[0]
    assert len(ours) == 64
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("roles", [True, False])
def test_conversations_have_the_same_ids(
    tmp_path: Path, fast_tokenizer: Any, spread: Any, roles: bool, noise_picture: Callable[..., Image.Image]
) -> None:
    from transformers import AutoTokenizer, JanusProcessor
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    write_tiny(tmp_path / "janus", fast_tokenizer, spread, roles=roles)
    pipe = anymodal.from_pretrained(tmp_path / "janus", device="cpu", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "janus")
    images = JanusImageProcessorPil.from_pretrained(tmp_path / "janus")
    processor = JanusProcessor(images, tokenizer, num_image_tokens=16)
    user, assistant = ("<|User|>: ", "<|Assistant|>:") if roles else ("User: ", "Assistant:")
    text = f"{BOS}{user}<image_placeholder>\nWhat is this?\n\n{assistant} a dog{EOS}{user}How many?\n\n{assistant}"
    seen = noise_picture(0, 40, 23)
    theirs = processor(images=seen, text=text, return_tensors="pt", add_special_tokens=False)
    looked = pipe.prompter.resolve([Look(seen)])[0]
    assert isinstance(looked, Look)
    torch.testing.assert_close(looked.picture, theirs["pixel_values"][0], atol=1e-6, rtol=0.0)
    turns = [Turn("user", (looked, "What is this?")), Turn("assistant", ("a dog",)), Turn("user", ("How many?",))]
    assert pipe.encoder.encode(turns, complete=False).ids.tolist() == theirs["input_ids"][0].tolist()
    prompt = f"{BOS}{user}a dog\n\n{assistant}"
    drawing = processor(text=prompt, generation_mode="image", return_tensors="pt", add_special_tokens=False)
    assert pipe.encoder.prompt_image(["a dog"]).ids.tolist() == drawing["input_ids"][0].tolist()


def test_it_goes_out_as_it_came_in(pair: Pair, tmp_path: Path) -> None:
    from transformers import JanusForConditionalGeneration

    pair.pipe.save_pretrained(tmp_path / "ours")
    again = anymodal.from_pretrained(tmp_path / "ours", device="cpu", dtype="float32")
    again.save_pretrained(tmp_path / "out", layout="janus")
    before, after = (load_file(folder / "model.safetensors") for folder in (pair.folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    theirs = JanusForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([list(range(7, 20))])
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=ids).logits, pair.theirs(input_ids=ids).logits)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (pair.folder / name).read_bytes()


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text_config", {"num_attention_heads": 5}, "num_kv_heads must divide num_heads, got 4 and 5"),
        ("vision_config", {"num_image_tokens": 25}, "num_image_tokens 25, but its patches are 16"),
        ("vq_config", {"image_token_embed_dim": 64}, "vq_config leads to 64 channels, but the language model has 32"),
        ("vq_config", {"num_embeddings": 32}, r"expected \[32, 8\], got \[64, 8\]"),
    ],
)
def test_impossible_geometry_is_named(
    tmp_path: Path, fast_tokenizer: Any, spread: Any, part: str, changes: dict[str, Any], message: str
) -> None:
    write_tiny(tmp_path / "janus", fast_tokenizer, spread)
    path = tmp_path / "janus" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, part: {**config[part], **changes}}))
    with pytest.raises(ValueError, match=message):
        anymodal.from_pretrained(tmp_path / "janus", device="cpu", dtype="float32")
