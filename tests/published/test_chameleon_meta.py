import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import anymodal
from anymodal import Draw, Look, Pipeline, Turn
from anymodal.data.pictures import to_pixels
from anymodal.decoding.config import SamplingConfig
from anymodal.decoding.request import Request
from anymodal.published.chameleon_meta import Shards, halves, names, norm_of_heads, norm_of_shard, pairs
from anymodal.published.vqgan import read_taming_config, taming_names
from anymodal.tokens.grammar import compile_grammar
from anymodal.tokens.image import ImageTokenizer

GRID: dict[str, dict[str, Any]] = {
    "one": {},
    "one-grouped": {"n_kv_heads": 2, "rope_theta": 500.0},
    "one-without-norm": {"qk": False},
    "one-bfloat16": {"dtype": torch.bfloat16},
    "two": {"shards": 2},
    "two-grouped-swin": {"shards": 2, "n_kv_heads": 2, "swin_norm": True, "norm_eps": 1e-3},
    "two-converted": {"shards": 2, "safetensors": True},
    "four-swin": {"shards": 4, "n_heads": 8, "n_kv_heads": 4, "swin_norm": True},
}
DIM, HIDDEN, DEPTH, VOCAB, CODES = 32, 48, 2, 420, 64
PARAMS = {"dim": DIM, "n_layers": DEPTH, "n_heads": 4, "norm_eps": 1e-5, "rope_theta": 10000.0, "swin_norm": False}
BOS, SEP = "<s>", "<reserved08706>"
CODER = {
    "double_z": False, "z_channels": 16, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2],
    "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
VQGAN = {"embed_dim": 8, "n_embed": CODES, "ddconfig": CODER}
Release = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Case:
    """A release, read here, and what it was written from."""

    shards: Release
    params: Mapping[str, Any]
    image: ImageTokenizer
    tokenizer: Any
    folder: Path
    pipe: Pipeline


def draw_shards(params: Mapping[str, Any], count: int, *, qk: bool, dtype: torch.dtype) -> Release:
    """Draw random weights; every shard has norms of queries and keys of its own."""
    heads, kv_heads = params["n_heads"], params.get("n_kv_heads") or params["n_heads"]
    width = DIM // heads
    of_layers = [f"layers.{i}.{norm}_norm.weight" for i in range(DEPTH) for norm in ("attention", "ffn")]
    whole = {name: torch.rand(DIM) + 0.5 for name in ("norm.weight", *of_layers)}
    shapes = {"tok_embeddings.weight": (VOCAB, DIM // count), "output.weight": (VOCAB // count, DIM)}
    norms = dict[str, int]()
    for i in range(DEPTH):
        attention, feed = f"layers.{i}.attention", f"layers.{i}.feed_forward"
        shapes[f"{attention}.wq.weight"] = (heads // count * width, DIM)
        shapes[f"{attention}.wo.weight"] = (DIM, DIM // count)
        shapes |= {f"{attention}.w{each}.weight": (kv_heads // count * width, DIM) for each in "kv"}
        shapes |= {f"{feed}.w{each}.weight": (HIDDEN // count, DIM) for each in "13"}
        shapes |= {f"{feed}.w2.weight": (DIM, HIDDEN // count)}
        norms |= {f"{attention}.{each}_normalization": width for each in "qk" if qk}
    shards: Release = []
    for _ in range(count):
        own = {name: torch.randn(shape) / shape[1] ** 0.5 for name, shape in shapes.items()}
        own |= {f"{name}.weight": 1 + 0.5 * torch.randn(size) for name, size in norms.items()}
        own |= {f"{name}.bias": 0.5 * torch.randn(size) for name, size in norms.items()}
        shards.append({name: tensor.to(dtype) for name, tensor in {**whole, **own}.items()})
    return shards


def write_release(folder: Path, fast_tokenizer: Any, **how: Any) -> Case:
    """Write a tiny download of Meta's release."""
    torch.manual_seed(0)
    count, dtype = how.pop("shards", 1), how.pop("dtype", torch.float32)
    qk, converted = how.pop("qk", True), how.pop("safetensors", False)
    params = {**PARAMS, **how}
    shards = draw_shards(params, count, qk=qk, dtype=dtype)
    model, tokens = folder / "models" / "7b", folder / "tokenizer"
    for place in (model, tokens):
        place.mkdir(parents=True)
    for number, shard in enumerate(shards):
        stem = "consolidated" if count == 1 else f"consolidated.{number:02}"
        if converted:
            save_file(shard, model / f"{stem}.safetensors")
        else:
            torch.save({**shard, "rope.freqs": torch.zeros(4)}, model / f"{stem}.pth")
    (model / "params.json").write_text(json.dumps({"model": params, "model_parallel_size": 16, "seq_len": 4096}))
    (model / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": count}))
    codes = ["IMGIMG" + str(code).translate(str.maketrans("0123456789", "ABCDEFGHIJ")) + "Z" for code in range(CODES)]
    early = [BOS, "<pad>", "</s>", *reversed(codes), "<eoss>", "<racm3:break>"]
    tokenizer = fast_tokenizer(early, {}, 360, [SEP, "<reserved08707>"])
    (tokens / "text_tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    image = ImageTokenizer(read_taming_config(VQGAN)).eval()
    state = {name: tensor.clone() for name, tensor in taming_names(image.config).write(image.state_dict()).items()}
    torch.save({"state_dict": {**state, "loss.logvar": torch.zeros(1)}}, tokens / "vqgan.ckpt")
    unread = {"ckpt_path": "x", "lossconfig": {"target": "DummyLoss"}}
    described = {"model": {"target": "VQModel", "params": {**VQGAN, **unread}}}
    (tokens / "vqgan.yaml").write_text(yaml.safe_dump(described))
    pipe = anymodal.from_pretrained(folder, device="cpu", dtype="float32", allow_pickle=True)
    return Case(shards, params, image, tokenizer, folder, pipe)


@pytest.fixture(scope="module", params=GRID)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, fast_tokenizer: Any) -> Case:
    return write_release(tmp_path_factory.mktemp("published") / "data", fast_tokenizer, **GRID[request.param])


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, fast_tokenizer: Any) -> Path:
    return write_release(tmp_path_factory.mktemp("published") / "data", fast_tokenizer, shards=2).folder


@dataclass(frozen=True)
class ByHand:
    """The forward pass in float64, every shard by itself as on a device of its own, on the tensors' own names."""

    shards: Release
    params: Mapping[str, Any]

    def logits(self, ids: Tensor) -> Tensor:
        x = torch.cat([shard["tok_embeddings.weight"].double()[ids] for shard in self.shards], dim=-1)
        for i in range(self.params["n_layers"]):
            x = self.add(x, f"layers.{i}.attention_norm", self.attention)
            x = self.add(x, f"layers.{i}.ffn_norm", self.feed)
        x = self.norm(x, "norm")
        return torch.cat([x @ shard["output.weight"].double().T for shard in self.shards], dim=-1)

    def norm(self, x: Tensor, name: str) -> Tensor:
        size = (x.square().mean(-1, keepdim=True) + self.params["norm_eps"]).sqrt()
        return x / size * self.shards[0][f"{name}.weight"].double()

    def add(self, x: Tensor, norm: str, part: Callable[[dict[str, Tensor], str, Tensor], Tensor]) -> Tensor:
        before = x if self.params["swin_norm"] else self.norm(x, norm)
        layer = norm.rpartition(".")[0]
        result = torch.stack([part(shard, layer, before) for shard in self.shards]).sum(0)
        return x + (self.norm(result, norm) if self.params["swin_norm"] else result)

    def feed(self, shard: dict[str, Tensor], layer: str, x: Tensor) -> Tensor:
        one, two, three = (shard[f"{layer}.feed_forward.w{i}.weight"].double() for i in (1, 2, 3))
        gate = x @ one.T
        return (gate * gate.sigmoid() * (x @ three.T)) @ two.T

    def attention(self, shard: dict[str, Tensor], layer: str, x: Tensor) -> Tensor:
        width, length = DIM // self.params["n_heads"], x.shape[1]
        parts = []
        for each in "qkv":
            weight = shard[f"{layer}.attention.w{each}.weight"].double()
            y = (x @ weight.T).unflatten(-1, (-1, width))
            name = f"{layer}.attention.{each}_normalization"
            if f"{name}.weight" in shard:
                centred = y - y.mean(-1, keepdim=True)
                y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
                y = y * shard[f"{name}.weight"].double() + shard[f"{name}.bias"].double()
            parts.append(y if each == "v" else self.rotated(y))
        q, k, v = parts
        k, v = (y.repeat_interleave(q.shape[2] // y.shape[2], dim=2) for y in (k, v))
        weights = torch.einsum("bihk,bjhk->bhij", q, k) / width**0.5
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        seen = torch.einsum("bhij,bjhk->bihk", weights.masked_fill(future, -torch.inf).softmax(-1), v)
        return seen.flatten(2) @ shard[f"{layer}.attention.wo.weight"].double().T

    def rotated(self, y: Tensor) -> Tensor:
        """Turn neighbouring numbers as the parts of one complex number (arXiv:2104.09864, equation 34)."""
        width = y.shape[-1]
        turns = self.params["rope_theta"] ** (-torch.arange(0, width, 2).double() / width)
        angles = torch.arange(y.shape[1])[:, None, None] * turns
        even, odd = y[..., 0::2], y[..., 1::2]
        turned = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
        return torch.stack(turned, dim=-1).flatten(-2)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).abs().max() / theirs.abs().max()).detach())


def pixels(image: Image.Image) -> Tensor:
    return to_pixels(image, image.height, image.width)


def test_logits_and_losses_agree(case: Case, noise_picture: Callable[..., Image.Image]) -> None:
    seen, drawn = (pixels(noise_picture(seed, 16, 16)) for seed in range(2))
    batch = case.pipe.prepare([[Look(seen), "What is this?", Draw(drawn)]])
    out = case.pipe.model(batch)
    theirs = ByHand(case.shards, case.params).logits(batch.ids)
    assert relative(out.logits, theirs) < 1e-4
    assert torch.equal(out.logits.argmax(-1), theirs.argmax(-1))
    wanted = batch.targets >= 0
    code = case.pipe.vocabulary.is_code(batch.targets)
    for kind, where in (("image", wanted & code), ("text", wanted & ~code)):
        expected = F.cross_entropy(theirs[where], batch.targets[where]).float()
        torch.testing.assert_close(out.losses[kind].mean, expected, atol=1e-5, rtol=1e-5)


def test_64_greedy_tokens_are_the_same(case: Case) -> None:
    pipe = case.pipe
    prompt = pipe.encoder.encode(["What is this?"], complete=False)
    grammar = compile_grammar(pipe.vocabulary, pipe.parts.layout, "text", text_tokenizer=pipe.text_tokenizer)
    grammar.allowed[:, grammar.class_of[pipe.vocabulary.special("eos")]] = False
    allowed = grammar.mask(torch.tensor([grammar.start]))[0]
    request = Request(prompt=prompt, grammar=grammar, text=SamplingConfig(temperature=0.0), max_new_tokens=64)
    ours = pipe.sampler.generate([request])[0]
    theirs = ByHand(case.shards, case.params).logits(torch.cat((prompt.ids, ours))[None])[0]
    chosen = theirs.masked_fill(~allowed, -torch.inf).argmax(-1)  # greedy: every id follows from those before it
    assert torch.equal(ours, chosen[len(prompt.ids) - 1 : -1])
    assert len(ours) == 64


def test_pictures_are_read_and_drawn(case: Case, noise_picture: Callable[..., Image.Image]) -> None:
    seen = torch.stack([pixels(noise_picture(seed, 16, 16)) for seed in range(3)])
    codes = case.image.encode(seen)
    ours = case.pipe.image_tokenizer
    assert torch.equal(ours.encode(seen), codes)
    torch.testing.assert_close(ours.decode(codes), case.image.decode(codes), atol=1e-5, rtol=0)
    assert [image.size for image in case.pipe.generate_image("a red apple", num_images=2)] == [(16, 16)] * 2
    ids = case.pipe.vocabulary.to_ids(torch.arange(CODES))
    assert ids.tolist() == list(range(CODES + 2, 2, -1))  # the release names them, backwards here


def test_conversations_have_the_ids_of_the_release(case: Case) -> None:
    tokenizer, codes = case.tokenizer, torch.arange(64).view(8, 8)

    def spelled(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    def named(*tokens: str) -> list[int]:
        return list(tokenizer.convert_tokens_to_ids(list(tokens)))

    picture = [*named("<racm3:break>"), *range(CODES + 2, 2, -1), *named("<eoss>")]
    turns = [Turn("user", ("What is ", Look(codes), " this?")), Turn("assistant", (" a dog",)), Turn("user", ("How?",))]
    ids = [*named(BOS), *spelled("What is "), *picture, *spelled(" this?"), *named(SEP), *spelled(" a dog")]
    ids += [*named("</s>"), *spelled("How?"), *named(SEP)]
    assert case.pipe.encoder.encode(turns, complete=False).ids.tolist() == ids


def test_it_goes_out_to_transformers(case: Case, tmp_path: Path, noise_picture: Callable[..., Image.Image]) -> None:
    from transformers import ChameleonForConditionalGeneration, ChameleonProcessor

    if case.pipe.model.config.transformer.qk_norm == "none":
        with pytest.raises(ValueError, match="'chameleon' has qk_norm 'layer', this model has 'none'"):
            case.pipe.save_pretrained(tmp_path / "out", layout="chameleon")
        return
    case.pipe.save_pretrained(tmp_path / "out", layout="chameleon")
    model = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    processor = ChameleonProcessor.from_pretrained(tmp_path / "out")
    made = processor(images=noise_picture(0, 40, 30), text="a <image> dog", return_tensors="pt")
    ours = case.pipe.encoder.encode(
        case.pipe.prompter.resolve(["a ", Look(made["pixel_values"][0]), " dog"]), complete=False
    )
    with torch.no_grad():
        hidden = model.model(**made).last_hidden_state
        codes = model.get_image_tokens(made["pixel_values"])[0]
    assert torch.equal(codes, ours.ids[case.pipe.vocabulary.is_code(ours.ids)])
    theirs = ByHand(case.shards, case.params).logits(ours.ids[None])
    assert relative(model.lm_head(hidden), theirs) < 1e-4
    assert torch.equal(model.lm_head(hidden).argmax(-1), theirs.argmax(-1))
    again = anymodal.from_pretrained(tmp_path / "out", device="cpu", dtype="float32")
    assert again.image_tokenizer.fingerprint == case.pipe.image_tokenizer.fingerprint
    assert torch.equal(again.model(ours.ids[None]).logits, case.pipe.model(ours.ids[None]).logits)


def test_names_lead_back(case: Case) -> None:
    table = names(case.pipe.model.config.transformer)
    state = {name: tensor for name, tensor in case.pipe.model.state_dict().items()}
    if len(case.shards) == 1:
        back = table.write(state)
        assert back.keys() == case.shards[0].keys()
        assert all(torch.equal(back[name], tensor.float()) for name, tensor in case.shards[0].items())
    else:
        with pytest.raises(ValueError, match="one shard has one norm for all heads, this model has several"):
            table.write(state)


def test_rotary_pairs_become_halves() -> None:
    weight = torch.arange(8.0).view(8, 1)
    assert halves(weight, heads=2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(pairs(halves(weight, heads=2), heads=2), weight)
    norm = torch.arange(8.0).view(2, 4)
    spread = norm_of_heads(norm, heads=4)
    assert spread.tolist() == [[0, 2, 1, 3]] * 2 + [[4, 6, 5, 7]] * 2
    assert norm_of_shard(spread[2:]).tolist() == [4, 5, 6, 7]


def test_norms_that_drifted_are_averaged() -> None:
    shards = [{"norm.weight": torch.full((3,), value)} for value in (1.0, 1.02)]
    torch.testing.assert_close(Shards(shards)["norm.weight"], torch.full((3,), 1.01))
    with pytest.raises(ValueError, match=r"norm.weight must be equal in all shards, but they lie 1 apart"):
        Shards([{"norm.weight": torch.zeros(3)}, {"norm.weight": torch.ones(3)}])["norm.weight"]
    with pytest.raises(ValueError, match=r"0 and 1 differ in \['b.weight'\]"):
        Shards([{"a.weight": torch.zeros(3)}, {"a.weight": torch.zeros(3), "b.weight": torch.zeros(3)}])


def test_a_models_own_folder_will_do_and_pickles_must_be_allowed(tmp_path: Path, fast_tokenizer: Any) -> None:
    case = write_release(tmp_path, fast_tokenizer)
    own = anymodal.from_pretrained(tmp_path / "models" / "7b", device="cpu", dtype="float32", allow_pickle=True)
    ids = torch.arange(100, 120)[None]
    assert torch.equal(own.model(ids).logits, case.pipe.model(ids).logits)
    with pytest.raises(ValueError, match=r"consolidated.pth is a pickle, .* say allow_pickle=True"):
        anymodal.from_pretrained(tmp_path, device="cpu", dtype="float32")


def move(old: str, new: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / old).rename(folder / new)


def edit(file: str, **changes: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        path = folder / file
        data = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            inner = data
            *parts, last = key.split("__")
            for part in parts:
                inner = inner[part]
            inner[last] = value
        path.write_text(json.dumps(data))

    return change


def another(folder: Path) -> None:
    (folder / "models" / "30b").mkdir()
    (folder / "models" / "30b" / "consolidated.00.pth").write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another, r"shards of one model, found .*30b, .*7b; give the folder of one"),
        (move("models/7b/consolidated.00.pth", "models/7b/consolidated.02.pth"), r"without a gap, got \[1, 2\]"),
        (move("tokenizer", "tokens"), "text_tokenizer.json is missing"),
        (move("tokenizer/vqgan.ckpt", "tokenizer/v.ckpt"), "vqgan.ckpt is missing"),
        (move("tokenizer/vqgan.yaml", "tokenizer/v.yaml"), "vqgan.yaml is missing"),
        (move("models/7b/params.json", "models/7b/p.json"), "params.json is missing"),
        (
            edit("models/7b/consolidate_params.json", model_parallel_size=4),
            "size 4, but there are 2 shards",
        ),
        (edit("models/7b/params.json", model__n_heads=5), "n_heads must divide dim, got 5 and 32"),
        (edit("models/7b/params.json", model__n_kv_heads=1), "got 2 shards of 4 heads and 1 of keys"),
        (edit("models/7b/params.json", model__n_heads=8), r"wk.weight: expected|q_normalization.*expected"),
        (edit("models/7b/params.json", model={}), "lack dim, n_layers, n_heads"),
        (edit("tokenizer/vqgan.yaml", model__params__n_embed=65), r"expected \[65, 8\], got \[64, 8\]"),
        (edit("tokenizer/vqgan.yaml", model__params__ddconfig__resolution=17), "17 pixels a side, which 2, the down"),
        (edit("tokenizer/vqgan.yaml", model={}), "must hold model.params with a ddconfig"),
        (edit("tokenizer/text_tokenizer.json", model={}), "is no tokenizer that the tokenizers library can read"),
    ],
)
def test_a_broken_release_is_named(tmp_path: Path, release: Path, change: Callable[[Path], Any], message: str) -> None:
    folder = Path(shutil.copytree(release, tmp_path / "data"))
    change(folder)
    with pytest.raises(ValueError, match=message):
        anymodal.from_pretrained(folder, device="cpu", dtype="float32", allow_pickle=True)


def test_it_goes_out_as_it_came_in(tmp_path: Path, fast_tokenizer: Any) -> None:
    case = write_release(tmp_path / "in", fast_tokenizer, dtype=torch.bfloat16)
    case.pipe.save_pretrained(tmp_path / "ours")
    again = anymodal.from_pretrained(tmp_path / "ours", device="cpu", dtype="stored")
    again.save_pretrained(tmp_path / "out", layout="chameleon-meta")
    went = torch.load(tmp_path / "out" / "models" / "model" / "consolidated.pth", weights_only=True)
    assert all(torch.equal(went[name].float(), tensor.float()) for name, tensor in case.shards[0].items())
    for name in ("text_tokenizer.json", "vqgan.yaml"):
        assert (tmp_path / "out" / "tokenizer" / name).read_bytes() == (
            tmp_path / "in" / "tokenizer" / name
        ).read_bytes()
    back = anymodal.from_pretrained(tmp_path / "out", device="cpu", dtype="float32", allow_pickle=True)
    assert back.image_tokenizer.fingerprint == case.pipe.image_tokenizer.fingerprint
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        assert torch.equal(back.model(ids).logits, case.pipe.model(ids).logits)


def test_norms_of_several_shards_do_not_fit_in_one(tmp_path: Path, fast_tokenizer: Any) -> None:
    case = write_release(tmp_path / "in", fast_tokenizer, shards=2)
    with pytest.raises(ValueError, match="one shard has one norm for all heads"):
        case.pipe.save_pretrained(tmp_path / "out", layout="chameleon-meta")
    assert not (tmp_path / "out").exists()
