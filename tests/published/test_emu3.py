import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import anymodal
from anymodal import Draw, Look, Pipeline, Turn
from anymodal.decoding.config import SamplingConfig
from anymodal.decoding.request import Request
from anymodal.model.config import AnyModalConfig, TransformerConfig
from anymodal.model.unified import AnyModal
from anymodal.published.emu3 import grids, load_image_tokenizer, read_codes
from anymodal.published.registry import save_published
from anymodal.tokens.config import ChatTemplate, PictureLayout
from anymodal.tokens.grammar import compile_grammar
from anymodal.tokens.parts import Part
from anymodal.tokens.picture_config import PictureFit
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary

GRID: dict[str, dict[str, Any]] = {
    "plain": {},
    "one-kv-head": {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "full-wide-heads": {"num_key_value_heads": 4, "head_dim": 20, "rms_norm_eps": 1e-3},
    "tied": {"tied": True},
    "specials-last": {"specials_last": True},
    "shuffled": {"shuffled": True, "specials_last": True, "tied": True},
    "vq": {"channels": [1, 2, 2], "num_res_blocks": 2, "attention": [1, 2], "time": 4, "width": 6},
    "far-vq": {"channels": [1, 2, 4, 2], "attention": [], "time": 2, "codebook_size": 99},
}
TEXT_KEYS = ("num_key_value_heads", "rope_parameters", "rms_norm_eps", "attention_bias", "mlp_bias", "head_dim")
EXTRA = {
    "image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>",
    "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>",
}  # fmt: skip
BOS, EOS, PAD, EOL = "<|extra_203|>", "<|extra_204|>", "<|endoftext|>", "<|extra_200|>"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
VOCAB, ROWS, COLUMNS = 450, 4, 6


@dataclass(frozen=True)
class Pair:
    """The same weights in transformers and here."""

    theirs: Any
    pipe: Pipeline
    folder: Path

    @property
    def factor(self) -> int:
        return self.pipe.image_tokenizer.config.down_sampling


@torch.no_grad()
def spread_codes(vq: Any, factor: int) -> None:
    """Spread the codebook as latents are, so that many different codes are the nearest."""
    generator = torch.Generator().manual_seed(4)
    pixels = torch.rand(2, 4, 3, 4 * factor, 6 * factor, generator=generator) * 2 - 1
    latents = vq.quant_conv(vq.encoder(pixels).movedim(2, 1)).movedim(1, -1).flatten(0, 3)
    codebook = vq.quantize.embedding.weight
    rows = latents[torch.randint(len(latents), codebook.shape[:1], generator=generator)]
    codebook.copy_(rows + 0.3 * latents.std() * torch.randn(rows.shape, generator=generator))


def write_tiny(folder: Path, fast_tokenizer: Any, spread: Any, **how: Any) -> Pair:
    """Let transformers write a tiny Emu3, and read it."""
    from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3ImageProcessor, Emu3Processor

    channels, width = how.get("channels", [1, 2]), how.get("width", 4)
    vq = {
        "codebook_size": how.get("codebook_size", 64), "embed_dim": width, "latent_channels": width,
        "base_channels": 32, "channel_multiplier": channels, "num_res_blocks": how.get("num_res_blocks", 1),
        "attn_resolutions": how.get("attention", [1]), "hidden_size": 32 * channels[-1], "num_attention_heads": 1,
        "temporal_downsample_factor": how.get("time", 1),
    }  # fmt: skip
    codes = [f"<|visual token {code:06d}|>" for code in range(vq["codebook_size"])]
    if how.get("shuffled"):
        order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(2)).tolist()
        codes = [codes[place] for place in order]
        codes[20:20] = ["<|extra_7|>", "<|extra_8|>"]  # nor do their ids follow each other
    specials = [PAD, EOL, BOS, EOS, *EXTRA.values()]
    early, late = (["<|extra_9|>"], [*codes, *specials]) if how.get("specials_last") else (specials, codes)
    tokenizer = fast_tokenizer(early, EXTRA, 310, late, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    text = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, **{key: how[key] for key in TEXT_KEYS if key in how},
    }  # fmt: skip
    tied = how.get("tied", False)
    config = Emu3Config(text_config=text, vq_config=vq, vocabulary_map=tokenizer.get_vocab(), tie_word_embeddings=tied)
    model = Emu3ForConditionalGeneration(config).eval()
    spread(model, 3)
    factor = 2 ** (len(vq["channel_multiplier"]) - 1)
    spread_codes(model.model.vqmodel, factor)
    model.save_pretrained(folder)
    images = Emu3ImageProcessor(
        min_pixels=16 * factor**2, max_pixels=40 * factor**2, spatial_factor=factor,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    Emu3Processor(images, tokenizer, chat_template=TEMPLATE).save_pretrained(folder)
    return Pair(model, anymodal.from_pretrained(folder, device="cpu", dtype="float32"), folder)


@pytest.fixture(scope="module", params=GRID)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, fast_tokenizer: Any, spread: Any
) -> Pair:
    return write_tiny(tmp_path_factory.mktemp("published"), fast_tokenizer, spread, **GRID[request.param])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, fast_tokenizer: Any, spread: Any) -> Pair:
    return write_tiny(tmp_path_factory.mktemp("published"), fast_tokenizer, spread)


def noise(pair: Pair, seed: int, rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    """Draw pixels of a grid of codes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, rows * pair.factor, columns * pair.factor, generator=generator) * 2 - 1


def looked_at(pair: Pair, ids: Tensor) -> Tensor:
    """Put placeholders where transformers reads the codes of a picture itself."""
    vocabulary = pair.pipe.vocabulary
    inside = vocabulary.is_code(ids) | (ids == vocabulary.special("eol"))
    return torch.where(inside, vocabulary.special("look"), ids)


def test_codes_and_pixels_agree(pair: Pair) -> None:
    model, pipe = pair.theirs, pair.pipe
    seen = torch.stack([noise(pair, seed) for seed in range(3)])
    height, width = seen.shape[-2:]
    with torch.no_grad():
        ids = model.model.get_image_tokens(seen, torch.tensor([[height, width]] * 3)).view(3, -1)
        shown = model.decode_image_tokens(image_tokens=torch.nn.functional.pad(ids, (0, 3)), height=ROWS, width=COLUMNS)
    codes = pipe.image_tokenizer.encode(seen)
    ours = [torch.cat([*map(torch.as_tensor, pipe.encoder.picture_ids(picture))]).tolist() for picture in codes]
    assert [written[-len(ids[0]) - 2 : -2] for written in ours] == ids.tolist()
    assert len(codes.unique()) > 5
    torch.testing.assert_close(pipe.image_tokenizer.decode(codes), shown.clamp(-1, 1), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("draws", [False, True])
def test_logits_and_losses_agree(pair: Pair, draws: bool) -> None:
    model, pipe, seen = pair.theirs, pair.pipe, noise(pair, 1)
    document: list[Part] = ["a red apple", Draw(seen)] if draws else [Look(seen), "What is this?", "a dog"]
    batch = pipe.prepare([document])
    sequence = pipe.encoder.encode(pipe.prompter.resolve(document))
    labels = sequence.ids.where(sequence.loss, -100)[None]
    out = pipe.model(batch)
    with torch.no_grad():
        looks = {} if draws else {"pixel_values": seen[None], "image_sizes": torch.tensor([list(seen.shape[1:])])}
        theirs = model(input_ids=batch.ids if draws else looked_at(pair, batch.ids), labels=labels, **looks)
    assert (out.logits - theirs.logits).abs().max() < 1e-4 * theirs.logits.abs().max()
    assert torch.equal(out.logits.argmax(-1), theirs.logits.argmax(-1))
    torch.testing.assert_close(out.image_logits, out.logits[..., pipe.vocabulary.table()])
    total = sum(part.total for part in out.losses.values()) / sequence.loss.sum()
    torch.testing.assert_close(total, theirs.loss, atol=1e-5, rtol=1e-5)


def allowed_ids(pair: Pair, size: tuple[int, int], start: int) -> Callable[[int, Tensor], Sequence[int]]:
    """Say what transformers may write, as its documentation shows for Emu3."""
    special, codes = pair.pipe.vocabulary.special, pair.theirs.vocabulary_mapping.image_tokens
    rows, columns = size

    def allowed(_: int, ids: Tensor) -> Sequence[int]:
        place = len(ids) - start
        if place < rows * (columns + 1):
            return [special("eol")] if (place + 1) % (columns + 1) == 0 else codes
        return [special({0: "eof", 1: "eoi"}.get(place - rows * (columns + 1), "eos"))]

    return allowed


@pytest.mark.parametrize(
    ("guidance", "negative", "size"),
    [(2.0, None, (4, 6)), (3.0, "a dog", (7, 3)), (1.0, None, (5, 5))],
)
def test_a_greedy_picture_is_the_same_code_for_code(
    pair: Pair, guidance: float, negative: str | None, size: tuple[int, int]
) -> None:
    pipe = pair.pipe
    sampling = SamplingConfig(temperature=0.0, guidance_scale=guidance)
    request = pipe.prompter.image_request(["a red apple"], negative, sampling, size, 0)
    assert request.unconditional is not None
    prompt, unconditional = request.prompt.ids[None], request.unconditional.ids[None]
    count = size[0] * (size[1] + 1) + 3
    theirs = pair.theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=count,
        prefix_allowed_tokens_fn=allowed_ids(pair, size, prompt.shape[1]), guidance_scale=guidance,
        negative_prompt_ids=unconditional, negative_prompt_attention_mask=torch.ones_like(unconditional),
    )[0, prompt.shape[1] :]  # fmt: skip
    ids = pipe.sampler.generate([request])[0]
    assert ids.tolist() == theirs[:-1].tolist()  # ours ends with the picture
    assert int(theirs[-1]) == pipe.vocabulary.special("eos")
    assert pipe.prompter.codes_of(ids).shape == size


def test_64_greedy_tokens_are_the_same(pair: Pair) -> None:
    pipe, seen = pair.pipe, noise(pair, 2)
    prompt = pipe.encoder.encode(pipe.prompter.resolve([Look(seen), "What is this?"]), complete=False)
    grammar = compile_grammar(pipe.vocabulary, pipe.parts.layout, "text", text_tokenizer=pipe.text_tokenizer)
    grammar.allowed[:, grammar.class_of[pipe.vocabulary.special("eos")]] = False
    allowed = grammar.mask(torch.tensor([grammar.start]))[0]
    ids = looked_at(pair, prompt.ids)[None]
    theirs = pair.theirs.generate(
        input_ids=ids, pixel_values=seen[None], image_sizes=torch.tensor([list(seen.shape[1:])]),
        attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False,
        suppress_tokens=torch.nonzero(~allowed).flatten().tolist(),
    )[0, ids.shape[1] :]  # fmt: skip
    request = Request(prompt=prompt, grammar=grammar, text=SamplingConfig(temperature=0.0), max_new_tokens=64)
    ours = pipe.sampler.generate([request])[0]
    assert len(ours) == 64
    assert torch.equal(ours, theirs)


def message(role: str, *parts: str) -> dict[str, Any]:
    """Write a message as transformers takes it; an empty part is the picture."""
    return {"role": role, "content": [{"type": "text", "text": part} if part else {"type": "image"} for part in parts]}


def test_conversations_and_pictures_have_the_same_ids(pair: Pair, noise_picture: Callable[..., Image.Image]) -> None:
    from transformers import Emu3Processor

    picture, processor = noise_picture(3, 37, 52), Emu3Processor.from_pretrained(pair.folder)
    processor.downsample_ratio = pair.factor
    told = [message("system", "You are a helpful assistant."), message("user", "", "What is this?")]
    told += [message("assistant", "a dog"), message("user", "How many?")]
    text = processor.apply_chat_template(told, add_generation_prompt=True)
    inputs = processor(images=picture, text=text, return_tensors="pt")
    with torch.no_grad():
        codes = pair.theirs.model.get_image_tokens(inputs["pixel_values"], inputs["image_sizes"])
    ids = inputs["input_ids"][0]
    ids[ids == pair.pipe.vocabulary.special("look")] = codes.long()
    turns = [
        Turn("user", (Look(picture), "What is this?")),
        Turn("assistant", ("a dog",)),
        Turn("user", ("How many?",)),
    ]
    encoder, area = pair.pipe.encoder, 25 * pair.factor**2
    assert encoder.encode(pair.pipe.prompter.resolve(turns), complete=False).ids.tolist() == ids.tolist()
    drawing = processor(text="a dog", return_for_image_generation=True, image_area=area, return_tensors="pt")
    prompt = encoder.prompt_image(["a dog"], size=(5, 5)).ids
    assert (prompt.tolist(), [[5, 5]]) == (drawing["input_ids"][0].tolist(), drawing["image_sizes"])


def test_it_goes_out_as_it_came_in(pair: Pair, tmp_path: Path) -> None:
    from transformers import Emu3ForConditionalGeneration

    pair.pipe.save_pretrained(tmp_path / "ours")
    again = anymodal.from_pretrained(tmp_path / "ours", device="cpu", dtype="float32")
    assert again.parts.layout == pair.pipe.parts.layout
    again.save_pretrained(tmp_path / "out", layout="emu3")
    before, after = (load_file(folder / "model.safetensors") for folder in (pair.folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    theirs = Emu3ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([list(range(7, 20))])
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=ids).logits, pair.theirs(input_ids=ids).logits)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (pair.folder / name).read_bytes()
    came, went = (json.loads((folder / "config.json").read_text()) for folder in (pair.folder, tmp_path / "out"))
    assert all(went[key] == came[key] for key in came if not key.endswith("_config"))
    assert all(went[part].items() >= came[part].items() for part in ("text_config", "vq_config"))


def test_both_ways_of_naming_tensors_are_read(plain: Pair, tmp_path: Path) -> None:
    shutil.copytree(plain.folder, tmp_path, dirs_exist_ok=True)
    save_file({**plain.theirs.state_dict()}, tmp_path / "model.safetensors")
    assert "model.vqmodel.quantize.embedding.weight" in plain.theirs.state_dict()
    again = anymodal.from_pretrained(tmp_path, device="cpu", dtype="float32").parts
    for ours, before in ((again.model, plain.pipe.model), (again.image_tokenizer, plain.pipe.image_tokenizer)):
        assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in before.state_dict().items())


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text_config", {"num_attention_heads": 5}, "num_attention_heads must divide hidden_size, got 5 and 32"),
        ("text_config", {"num_key_value_heads": 3}, "num_kv_heads must divide num_heads, got 3 and 4"),
        ("text_config", {"vocab_size": 300}, r"must have an id in \[0, 300\), not 3"),
        ("text_config", {"hidden_size": 64}, r"expected \[450, 64\], got \[450, 32\]"),
        ("vq_config", {"codebook_size": 32}, "64 visual tokens, .* the image tokenizer has 32 codes"),
        ("image_processor", {"spatial_factor": 8}, "spatial_factor is 8, but a code .* spans 2 pixels"),
    ],
)
def test_impossible_geometry_is_named(
    plain: Pair, tmp_path: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    for path in plain.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    name = "processor_config.json" if part == "image_processor" else "config.json"
    config = json.loads((plain.folder / name).read_text())
    (tmp_path / name).unlink()
    (tmp_path / name).write_text(json.dumps({**config, part: {**config[part], **changes}}))
    with pytest.raises(ValueError, match=message):
        anymodal.from_pretrained(tmp_path, device="cpu", dtype="float32")


def test_ids_of_codes_are_read() -> None:
    theirs = {f"<|visual token {code:06d}|>": 7 * code % 31 for code in range(31)}
    assert read_codes({"a": 99, **theirs}, 31) == [7 * code % 31 for code in range(31)]
    with pytest.raises(ValueError, match="config.json has no vocabulary_map"):
        read_codes(None, 31)
    with pytest.raises(ValueError, match="30 visual tokens, the last of them 30, .* has 30 codes"):
        read_codes({token: index for token, index in theirs.items() if index}, 30)


def test_the_image_tokenizer_alone(plain: Pair, tmp_path: Path) -> None:
    plain.theirs.model.vqmodel.save_pretrained(tmp_path / "alone")
    seen = noise(plain, 8, 3, 9)[None]
    codes = plain.pipe.image_tokenizer.encode(seen)
    for folder in (tmp_path / "alone", plain.folder):
        tokenizer = load_image_tokenizer(folder)
        assert torch.equal(tokenizer.encode(seen), codes)
        assert torch.equal(tokenizer.decode(codes), plain.pipe.image_tokenizer.decode(codes))
    (tmp_path / "alone" / "config.json").write_text('{"model_type": "janus"}')
    with pytest.raises(ValueError, match=r"'emu3_vqgan' \(alone\) or 'emu3', .* says 'janus'"):
        load_image_tokenizer(tmp_path / "alone")


def test_a_model_that_was_made_here_goes_out(plain: Pair, tmp_path: Path) -> None:
    from transformers import Emu3ForConditionalGeneration, Emu3Processor

    text = TextTokenizer.learn(["a red apple 0123456789*"], vocab_size=280)
    vocabulary = Vocabulary.build(text_size=290, specials=text.specials, codebook_size=64)
    transformer = TransformerConfig(dim=32, depth=1, num_heads=2, num_kv_heads=1, head_dim=16, hidden_dim=48)
    parts = replace(
        plain.pipe.parts, model=AnyModal(AnyModalConfig(transformer=transformer), vocabulary).eval(),
        text_tokenizer=text, layout=PictureLayout(kind="rows", sizes=((4, 6), (6, 4), (3, 5))), template=ChatTemplate(),
        origin=None,
    )  # fmt: skip
    Pipeline(parts).save_pretrained(tmp_path / "out", layout="emu3")
    theirs = Emu3ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    again = anymodal.from_pretrained(tmp_path / "out", device="cpu", dtype="float32")
    ids = Emu3Processor.from_pretrained(tmp_path / "out")(
        text="a red apple", return_for_image_generation=True, image_area=48 * 48, return_tensors="pt"
    )["input_ids"]
    header = [vocabulary.special("boi"), *text.encode("6*6"), vocabulary.special("img")]
    assert ids[0, -len(header) :].tolist() == header
    drawn = torch.cat([ids[0], *map(torch.as_tensor, again.encoder.picture_ids(torch.arange(24).view(4, 6)))])[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=drawn).logits, parts.model(drawn).logits)
    assert torch.equal(again.model(drawn).logits, parts.model(drawn).logits)
    assert {*parts.layout.sizes} < {*again.parts.layout.sizes}
    assert torch.equal(again.vocabulary.table(), vocabulary.table())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"heads": "decoupled"}, "shared heads, .* this model has heads 'decoupled'"),
        ({"transformer": TransformerConfig(norm_position="swin")}, "has norm_position 'pre', this model has 'swin'"),
        ({}, "writes pictures as 'rows', this model as 'fixed'"),
    ],
)
def test_what_emu3_cannot_be_is_named(plain: Pair, tmp_path: Path, model: dict[str, Any], message: str) -> None:
    vocabulary = Vocabulary.build(text_size=400, specials=plain.pipe.text_tokenizer.specials, codebook_size=64)
    parts = replace(plain.pipe.parts, model=AnyModal(AnyModalConfig(**model), vocabulary), layout=PictureLayout())
    with pytest.raises(ValueError, match=message):
        save_published(parts, tmp_path / "out", "emu3")


def test_the_sizes_of_the_real_model_stay_usable(plain: Pair) -> None:
    fit = PictureFit(kind="area")
    sizes = grids(fit, 8)
    assert sizes[0] == (90, 90)
    assert {(64, 64), (128, 128), (32, 512), (1800, 9)} < {*sizes}
    assert all(
        4096 <= rows * columns <= 16384 and max(rows, columns) <= 200 * min(rows, columns) for rows, columns in sizes
    )
    assert len({*sizes}) == len(sizes) == 65211
    layout = replace(plain.pipe.parts.layout, sizes=sizes)
    vocabulary, tokenizer = plain.pipe.vocabulary, plain.pipe.text_tokenizer
    free = compile_grammar(vocabulary, layout, "image", text_tokenizer=tokenizer)
    assert len(free.allowed) < 270_000
    begun = free.check(torch.tensor([*tokenizer.encode("90*90"), vocabulary.special("img")]))
    assert int(free.steps_left[begun]) == 90 * 91 + 2
    one = compile_grammar(vocabulary, layout, "image", text_tokenizer=tokenizer, size=(1800, 9))
    assert int(one.steps_left[one.start]) == 18002
    with pytest.raises(ValueError, match="holds pictures of 90x90, .* and 65203 more codes, not of 20x20"):
        compile_grammar(vocabulary, layout, "image", text_tokenizer=tokenizer, size=(20, 20))
    with pytest.raises(ValueError, match="pictures of 100 to 120 pixels must have a grid of codes"):
        grids(PictureFit(kind="area", min_pixels=100, max_pixels=120), 8)
