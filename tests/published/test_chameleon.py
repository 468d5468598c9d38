import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor

import anymodal
from anymodal import Draw, Look, Pipeline, Turn
from anymodal.data.pictures import to_pixels
from anymodal.decoding.config import SamplingConfig
from anymodal.decoding.request import Request
from anymodal.model.config import AnyModalConfig, TransformerConfig
from anymodal.model.folder import ModelFolder
from anymodal.model.unified import AnyModal
from anymodal.published.chameleon_vqgan import save_decoder
from anymodal.published.vqgan import read_chameleon_config, taming_names
from anymodal.tokens.batch import IGNORE
from anymodal.tokens.config import ChatTemplate, PictureLayout
from anymodal.tokens.grammar import compile_grammar
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary

GRID: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "one-kv-head": {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "swin": {"swin_norm": True},
    "swin-grouped-biased": {"swin_norm": True, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "tied-swin": {"tie_word_embeddings": True, "swin_norm": True, "rms_norm_eps": 1e-3},
    "specials-last": {"order": "last"},
    "shuffled": {"order": "shuffled"},
    "vq": {"vq": {"channel_multiplier": [1, 1, 2], "num_res_blocks": 2, "attn_resolutions": [16], "embed_dim": 24}},
    "vq-without-attention": {"vq": {"channel_multiplier": [1, 2, 2, 1], "attn_type": "none"}},
    "wide-pictures": {"crop": (16, 40)},
}
BOS, PAD, EOS, SEP = "<s>", "<pad>", "</s>", "<reserved08706>"
EXTRA = {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
BACKBONE = {
    "vocab_size": 420, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 512, "swin_norm": False,
}  # fmt: skip
VQ = {
    "embed_dim": 16, "num_embeddings": 64, "latent_channels": 16, "resolution": 32, "base_channels": 32,
    "channel_multiplier": [1, 2, 2], "num_res_blocks": 1, "attn_resolutions": None,
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """The same weights in transformers and here."""

    theirs: Any
    pipe: Pipeline
    folder: Path


def spell(code: int) -> str:
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


def write_tiny(folder: Path, fast_tokenizer: Any, spread: Any, **how: Any) -> Any:
    """Let transformers write a tiny Chameleon and return its model."""
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonProcessor
    from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

    vq = {**VQ, **how.pop("vq", {})}
    height, width = how.pop("crop", (32, 32))
    factor = 2 ** (len(vq["channel_multiplier"]) - 1)
    codes = [spell(code) for code in range(vq["num_embeddings"])]
    early, late = [BOS, PAD, EOS, *codes, *EXTRA.values(), SEP], list[str]()
    if (order := how.pop("order", "first")) == "last":
        early, late = [], early
    elif order == "shuffled":
        random.Random(0).shuffle(early)
        early, late = early[:30], early[30:]
    named = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "sep_token": SEP}
    tokenizer = fast_tokenizer(early, EXTRA, len(early) + 280, late, **named)
    bos = (BOS, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{BOS} $A", f"{BOS} $A {BOS} $B", [bos])
    vocabulary_map = {name: index for name, index in tokenizer.get_vocab().items() if index < BACKBONE["vocab_size"]}
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    config = ChameleonConfig(**{**BACKBONE, **ids, **how}, vq_config=vq, vocabulary_map=vocabulary_map)
    model = ChameleonForConditionalGeneration(config).eval()
    spread(model, 3)
    model.save_pretrained(folder)
    images = ChameleonImageProcessorPil(
        size={"shortest_edge": min(height, width)}, crop_size={"height": height, "width": width}
    )
    count = height // factor * (width // factor)
    ChameleonProcessor(images, tokenizer, image_seq_length=count).save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=GRID)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, fast_tokenizer: Any, spread: Any
) -> Pair:
    folder = tmp_path_factory.mktemp("published") / "chameleon"
    model = write_tiny(folder, fast_tokenizer, spread, **GRID[request.param])
    return Pair(model, anymodal.from_pretrained(folder, device="cpu", dtype="float32"), folder)


def side(pipe: Pipeline) -> dict[str, int]:
    (rows, columns), factor = pipe.parts.layout.sizes[0], pipe.image_tokenizer.config.down_sampling
    return {"height": rows * factor, "width": columns * factor}


def pixels(image: Image.Image) -> Tensor:
    return to_pixels(image, image.height, image.width)


def scores(model: Any, ids: Tensor) -> Tensor:
    """Return all their logits: `forward` hides those of image codes."""
    logits: Tensor = model.lm_head(model.model(input_ids=ids).last_hidden_state)
    return logits


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).abs().max() / theirs.abs().max()).detach())


def test_codes_are_those_of_get_image_tokens(pair: Pair, noise_picture: Callable[..., Image.Image]) -> None:
    seen = torch.stack([pixels(noise_picture(seed, **side(pair.pipe))) for seed in range(3)])
    with torch.no_grad():
        theirs = pair.theirs.get_image_tokens(seen)
    codes = pair.pipe.image_tokenizer.encode(seen)
    assert torch.equal(pair.pipe.vocabulary.to_ids(codes).flatten(1), theirs)
    assert codes.shape[1:] == pair.pipe.parts.layout.sizes[0]
    assert len(codes.unique()) > 1


def test_logits_of_text_and_pictures_agree(pair: Pair, noise_picture: Callable[..., Image.Image]) -> None:
    pipe = pair.pipe
    size = side(pipe)
    seen, drawn = (pixels(noise_picture(seed, **size)) for seed in range(2))
    batch = pipe.prepare([[Look(seen), "What is this?", Draw(drawn)]])
    out = pipe.model(batch)
    with torch.no_grad():
        theirs = scores(pair.theirs, batch.ids)
    assert relative(out.logits, theirs) < 1e-4
    assert torch.equal(out.logits.argmax(-1), theirs.argmax(-1))
    chosen = theirs[..., pipe.vocabulary.table("image")]
    assert relative(out.image_logits, chosen) < 1e-4
    assert torch.equal(out.image_logits.argmax(-1), chosen.argmax(-1))
    code = pipe.vocabulary.is_code(batch.targets) & (batch.targets != IGNORE)
    for kind, where in (("image", code), ("text", ~code & (batch.targets != IGNORE))):
        expected = F.cross_entropy(theirs[where], batch.targets[where])
        torch.testing.assert_close(out.losses[kind].mean, expected, atol=1e-5, rtol=1e-5)


def test_losses_agree_where_image_ids_are_masked(pair: Pair, noise_picture: Callable[..., Image.Image]) -> None:
    pipe = pair.pipe
    batch = pipe.prepare([[Look(pixels(noise_picture(0, **side(pipe)))), "What is this?", " a dog"]])
    labels = torch.where(pipe.vocabulary.is_code(batch.ids), -100, batch.ids)
    with torch.no_grad():
        theirs = pair.theirs(input_ids=batch.ids, labels=labels)
        logits = pipe.model(batch).logits
    logits[..., pipe.vocabulary.table("image")] = torch.finfo(logits.dtype).min
    ours = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert relative(logits, theirs.logits) < 1e-4
    assert torch.equal(logits.argmax(-1), theirs.logits.argmax(-1))
    torch.testing.assert_close(ours, theirs.loss, atol=1e-5, rtol=1e-5)


def test_64_greedy_tokens_are_the_same(pair: Pair, noise_picture: Callable[..., Image.Image]) -> None:
    pipe = pair.pipe
    seen = pixels(noise_picture(2, **side(pipe)))
    prompt = pipe.encoder.encode(pipe.prompter.resolve([Look(seen), "What is this?"]), complete=False)
    grammar = compile_grammar(pipe.vocabulary, pipe.parts.layout, "text", text_tokenizer=pipe.text_tokenizer)
    grammar.allowed[:, grammar.class_of[pipe.vocabulary.special("eos")]] = False
    allowed = grammar.mask(torch.tensor([grammar.start]))[0]
    placeholder = pipe.vocabulary.special("look")
    ids = torch.where(pipe.vocabulary.is_code(prompt.ids), placeholder, prompt.ids)[None]
    theirs = pair.theirs.generate(
        input_ids=ids, pixel_values=seen[None], attention_mask=torch.ones_like(ids), max_new_tokens=64,
        do_sample=False, suppress_tokens=torch.nonzero(~allowed).flatten().tolist(),
    )[0, ids.shape[1] :]  # fmt: skip
    request = Request(prompt=prompt, grammar=grammar, text=SamplingConfig(temperature=0.0), max_new_tokens=64)
    ours = pipe.sampler.generate([request])[0]
    assert len(ours) == 64
    assert torch.equal(ours, theirs)


def test_a_greedy_picture_is_what_their_logits_say(pair: Pair) -> None:
    pipe, guidance = pair.pipe, 3.0
    sampling = SamplingConfig(temperature=0.0, guidance_scale=guidance)
    request = pipe.prompter.image_request(["a red apple"], None, sampling, None, 0)
    assert request.unconditional is not None
    table = pipe.vocabulary.table("image")
    full, empty = (prompt.ids[None] for prompt in (request.prompt, request.unconditional))
    for _ in range(12):
        with torch.no_grad():
            pushed, away = (scores(pair.theirs, ids)[0, -1, table] for ids in (full, empty))
        best = table[(away + guidance * (pushed - away)).argmax()].view(1, 1)
        full, empty = (torch.cat((ids, best), dim=1) for ids in (full, empty))
    ours = pipe.sampler.generate([request])[0]
    assert torch.equal(ours[:12], full[0, -12:])


@pytest.mark.parametrize("order", ["first", "last", "shuffled"])
def test_conversations_have_the_same_ids(
    tmp_path: Path, fast_tokenizer: Any, spread: Any, order: str, noise_picture: Callable[..., Image.Image]
) -> None:
    from transformers import ChameleonProcessor

    model = write_tiny(tmp_path / "chameleon", fast_tokenizer, spread, order=order)
    pipe = anymodal.from_pretrained(tmp_path / "chameleon", device="cpu", dtype="float32")
    processor = ChameleonProcessor.from_pretrained(tmp_path / "chameleon")

    def expected(text: str, *pictures: Image.Image) -> tuple[list[int], list[Tensor]]:
        made = processor(images=list(pictures) or None, text=text, return_tensors="pt")
        ids, seen = made["input_ids"][0], list(made["pixel_values"] if pictures else [])
        if seen:
            ids[ids == model.config.image_token_id] = model.get_image_tokens(torch.stack(seen)).flatten().long()
        return ids.tolist(), seen

    first, second = noise_picture(0, 40, 52), noise_picture(1, 64, 33)
    asked = f"<image>What is this?{SEP} a dog{EOS}How many <image> 0123?"
    ids, seen = expected(asked, first, second)
    turns = [
        Turn("user", (Look(seen[0]), "What is this?")),
        Turn("assistant", (" a dog",)),
        Turn("user", ("How many ", Look(seen[1]), " 0123?")),
    ]
    assert pipe.encoder.encode(pipe.prompter.resolve(turns), complete=False).ids.tolist() == ids
    ids, _ = expected("a dog")
    assert pipe.encoder.prompt_image(["a dog"]).ids.tolist() == [*ids, pipe.vocabulary.special("boi")]
    typed = pipe.encoder.encode([f"{SEP} <image> {spell(3)}"], complete=False)
    assert not torch.isin(typed.ids[1:-1], torch.tensor(sorted(pipe.encoder._control))).any()


def test_it_goes_out_as_it_came_in(pair: Pair, tmp_path: Path) -> None:
    from transformers import ChameleonForConditionalGeneration

    pair.pipe.save_pretrained(tmp_path / "ours")
    again = anymodal.from_pretrained(tmp_path / "ours", device="cpu", dtype="float32")
    again.save_pretrained(tmp_path / "out", layout="chameleon")
    before, after = (load_file(folder / "model.safetensors") for folder in (pair.folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    theirs = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert theirs.model.vocabulary_mapping.img2bpe == pair.theirs.model.vocabulary_mapping.img2bpe
    ids = torch.tensor([list(range(7, 90))])
    with torch.no_grad():
        assert torch.equal(scores(theirs, ids), scores(pair.theirs, ids))
    names = {path.name for path in pair.folder.iterdir()}
    assert names == {path.name for path in (tmp_path / "out").iterdir()}
    for name in names - {"config.json", "model.safetensors"}:
        assert (tmp_path / "out" / name).read_bytes() == (pair.folder / name).read_bytes()
    configs = (json.loads((folder / "config.json").read_text()) for folder in (pair.folder, tmp_path / "out"))
    assert next(configs).items() <= next(configs).items()


def test_a_model_made_here_in_their_shape_goes_out(tmp_path: Path, noise_picture: Callable[..., Image.Image]) -> None:
    from transformers import ChameleonForConditionalGeneration, ChameleonProcessor

    torch.manual_seed(0)
    text = TextTokenizer.learn(["What is this? a red dog"] * 4, vocab_size=290)
    image = ImageTokenizer(replace(read_chameleon_config(VQ), has_decoder=True))
    vocabulary = Vocabulary.build(text_size=text.vocab_size, specials=text.specials, codebook_size=image.codebook_size)
    shape = TransformerConfig(dim=32, depth=1, num_heads=4, num_kv_heads=2, head_dim=8, hidden_dim=48, qk_norm="layer")
    parts = ModelFolder(
        model=AnyModal(AnyModalConfig(transformer=shape), vocabulary).eval(),
        text_tokenizer=text,
        image_tokenizer=image.eval(),
        layout=PictureLayout(sizes=((8, 10),)),
        template=ChatTemplate(),
    )
    pipe = Pipeline(parts)
    pipe.save_pretrained(tmp_path / "out", layout="chameleon")
    model = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    made = ChameleonProcessor.from_pretrained(tmp_path / "out")(
        images=noise_picture(0, 60, 90), text="<bos><user><look>What is this?", return_tensors="pt"
    )
    ids, seen = made["input_ids"], made["pixel_values"]
    ids[ids == model.config.image_token_id] = model.get_image_tokens(seen).flatten().long()
    ours = pipe.encoder.encode(pipe.prompter.resolve([Look(seen[0]), "What is this?"]), complete=False).ids
    assert ours.tolist() == ids[0].tolist()
    assert relative(pipe.model(ids).logits, scores(model, ids)) < 1e-4


def test_it_draws_once_a_decoder_stands_beside_it(tmp_path: Path, fast_tokenizer: Any, spread: Any) -> None:
    folder = tmp_path / "chameleon"
    write_tiny(folder, fast_tokenizer, spread, crop=(16, 40))
    pipe = anymodal.from_pretrained(folder, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="this model has no decoder for pictures"):
        pipe.generate_image("a dog")
    whole = ImageTokenizer(replace(pipe.image_tokenizer.config, has_decoder=True))
    whole.load_state_dict(pipe.image_tokenizer.state_dict(), strict=False)
    save_decoder(whole, folder)
    pipe = anymodal.from_pretrained(folder, device="cpu", dtype="float32")
    assert [image.size for image in pipe.generate_image("a dog", num_images=2)] == [(40, 16)] * 2
    pipe.save_pretrained(tmp_path / "out", layout="chameleon")
    again = anymodal.from_pretrained(tmp_path / "out", device="cpu", dtype="float32")
    assert again.image_tokenizer.fingerprint == pipe.image_tokenizer.fingerprint


def test_pickled_weights_are_read_where_allowed(tmp_path: Path, fast_tokenizer: Any, spread: Any) -> None:
    folder, ids = tmp_path / "chameleon", torch.arange(7, 90)[None]
    model = write_tiny(folder, fast_tokenizer, spread)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is a pickle, .* say allow_pickle=True"):
        anymodal.from_pretrained(folder, device="cpu", dtype="float32")
    whole = ImageTokenizer(read_chameleon_config(VQ, has_decoder=True))
    known = {name.removeprefix("model.vqmodel."): tensor for name, tensor in state.items() if ".vqmodel." in name}
    torch.save({"state_dict": {**taming_names(whole.config).write(whole.state_dict()), **known}}, folder / "vqgan.ckpt")
    pipe = anymodal.from_pretrained(folder, device="cpu", dtype="float32", allow_pickle=True)
    assert pipe.image_tokenizer.config.has_decoder
    assert relative(pipe.model(ids).logits, scores(model, ids)) < 1e-4


def test_what_the_layout_cannot_express_is_refused(tmp_path: Path, fast_tokenizer: Any, spread: Any) -> None:
    write_tiny(tmp_path / "chameleon", fast_tokenizer, spread)
    pipe = anymodal.from_pretrained(tmp_path / "chameleon", device="cpu", dtype="float32")
    pipe.parts.template = replace(pipe.parts.template, assistant=((" answer: ",), ("<eos>",)))
    with pytest.raises(ValueError, match="one special id between a question and its answer"):
        pipe.save_pretrained(tmp_path / "out", layout="chameleon")
    pipe.parts.template = ChatTemplate(user=((), ("<sep>",)), assistant=((), ("<eos>",)))
    pipe.model.config = replace(pipe.model.config, picture_places=5)
    with pytest.raises(ValueError, match="picture_places 5; save it without a layout"):
        pipe.save_pretrained(tmp_path / "out", layout="chameleon")
    pipe.model.config = replace(pipe.model.config, transformer=replace(pipe.model.config.transformer, qk_norm="none"))
    with pytest.raises(ValueError, match="'chameleon' has qk_norm 'layer', this model has 'none'"):
        pipe.save_pretrained(tmp_path / "out", layout="chameleon")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"num_key_value_heads": 3}, "num_kv_heads must divide num_heads, got 3 and 4"),
        ("config.json", {"num_attention_heads": 5}, "num_attention_heads must divide hidden_size, got 5 and 32"),
        ("config.json", {"head_dim": 16}, "must be hidden_size, got 16 x 4 and 32"),
        ("config.json", {"vocab_size": 400}, "vocab_size 400, but model.embed_tokens.weight has 420 rows"),
        ("config.json", {"vocabulary_map": None}, "lacks vocabulary_map"),
        (
            "config.json",
            {"vocabulary_map": {"IMGIMGAZ": 3}},
            "64 codes once, got 1 names of 1 codes up to 0",
        ),
        (
            "config.json",
            {"vocabulary_map": {"IMGIMG-Z": 3}},
            "names such as 'IMGIMGBCZ' to ids, got 'IMGIMG-Z'",
        ),
        ("config.json", {"vocabulary_map:<image>": 7}, "<image> is id 7, tokenizer.json says 67"),
        ("config.json", {"vq_config:num_embeddings": 65}, r"expected \[65, 16\], got \[64, 16\]"),
        ("processor_config.json", {"image_seq_length": 1024}, "image_seq_length 1024, .* have 8 x 8 = 64 codes"),
        ("processor_config.json", {"image_processor": {"crop_size": 30}}, "pictures have 30 x 30 pixels, which 4"),
    ],
)
def test_impossible_geometry_is_named(
    tmp_path: Path, fast_tokenizer: Any, spread: Any, file: str, changes: dict[str, Any], message: str
) -> None:
    write_tiny(tmp_path / "chameleon", fast_tokenizer, spread)
    path = tmp_path / "chameleon" / file
    config = json.loads(path.read_text())
    for name, value in changes.items():
        part, _, key = name.rpartition(":")
        (config[part] if part else config)[key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        anymodal.from_pretrained(tmp_path / "chameleon", device="cpu", dtype="float32")
