import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import anymodal
from anymodal import Draw, Look, Pipeline
from anymodal.data.pictures import to_pixels

EXTRA = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
# transformers' name -> the original's, in the order in which they are tried
RENAMES = (
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.vision_model\.embeddings\.patch_embedding", "vision_model.vision_tower.patch_embed.proj"),
    (r"^model\.vision_model\.embeddings\.position_embedding\.weight", "vision_model.vision_tower.pos_embed"),
    (r"^model\.vision_model\.post_layernorm", "vision_model.vision_tower.norm"),
    (r"^model\.vision_model\.encoder\.layers\.", "vision_model.vision_tower.blocks."),
    (r"self_attn\.projection_layer(?=.*)", "self_attn.proj"),
    (r"(vision_tower.*)\.layer_norm(\d)", r"\1.norm\2"),
    (r"(vision_tower.*)\.self_attn", r"\1.attn"),
    (r"^model\.aligner\.fc1", "aligner.layers.0"),
    (r"^model\.aligner\.hidden_layers\.0", "aligner.layers.2"),
    (r"^model\.generation_embeddings", "gen_embed"),
    (r"^model\.generation_aligner\.fc1", "gen_aligner.layers.0"),
    (r"^model\.generation_aligner\.hidden_layers\.0", "gen_aligner.layers.2"),
    (r"^model\.generation_head\.proj_out", "gen_head.output_mlp_projector"),
    (r"^model\.generation_head", "gen_head"),
    (r"^model\.vqmodel", "gen_vision_model"),
    (r"(gen_vision_model\.encoder)\.down", r"\1.conv_blocks"),
    (r"(gen_vision_model\.decoder)\.up", r"\1.conv_blocks"),
    (r"(conv_blocks\.\d+)\.block\.", r"\1.res."),
    (r"(gen_vision_model.*)\.mid\.block_1", r"\1.mid.0"),
    (r"(gen_vision_model.*)\.mid\.attn_1", r"\1.mid.1"),
    (r"(gen_vision_model.*)\.mid\.block_2", r"\1.mid.2"),
)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of transformers' Janus as the original does, and fuse what it fuses."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, other in RENAMES:
            name = re.sub(pattern, other, name)  # noqa: PLW2901
        found[name] = tensor[None] if name.endswith("pos_embed") else tensor
    for name in [name for name in found if "vision_tower" in name and ".q_proj." in name]:
        parts = [found.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        found[name.replace("q_proj", "qkv")] = torch.cat(parts)
    found["vision_model.vision_tower.attn_pool.latent"] = torch.randn(1, 1, 32)
    found["gen_vision_model.quantize.codebook_used"] = torch.zeros(64)
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}


def make_theirs(fast_tokenizer: Any, spread: Any) -> tuple[Any, Any]:
    """Make the model in transformers, with its tokenizer."""
    from transformers import JanusConfig, JanusForConditionalGeneration

    tokens = [BOS, EOS, PAD, *EXTRA.values(), "<|User|>", "<|Assistant|>"]
    tokenizer = fast_tokenizer(tokens, EXTRA, 300, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    config = JanusConfig(
        text_config={"model_type": "llama", "vocab_size": 330, "hidden_size": 32, "intermediate_size": 48,
                     "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256},
        vision_config={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
                       "patch_size": 8, "projection_dim": 32, "num_image_tokens": 16},
        vq_config={"embed_dim": 8, "num_embeddings": 64, "latent_channels": 16, "base_channels": 32,
                   "projection_dim": 32, "channel_multiplier": [1, 1, 2, 2], "num_res_blocks": 1,
                   "image_token_embed_dim": 32, "num_hidden_layers": 2},
        image_token_id=3, tie_word_embeddings=False,
    )  # fmt: skip
    model = JanusForConditionalGeneration(config).eval()
    spread(model, 5)
    codebook = model.model.vqmodel.quantize.embedding.weight.data
    codebook /= codebook.norm(dim=1, keepdim=True)
    return model, tokenizer


@pytest.fixture(scope="module")
def theirs(fast_tokenizer: Any, spread: Any) -> tuple[Any, Any]:
    return make_theirs(fast_tokenizer, spread)


@pytest.fixture(params=["safetensors", "pickle"])
def folder(theirs: tuple[Any, Any], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    write_original(tmp_path, theirs, pickled=request.param == "pickle")
    return tmp_path


def write_tiny(folder: Path, fast_tokenizer: Any, spread: Any) -> None:
    """Write a tiny Janus of the original code."""
    folder.mkdir()
    write_original(folder, make_theirs(fast_tokenizer, spread), pickled=False)


def write_original(folder: Path, theirs: tuple[Any, Any], *, pickled: bool) -> None:
    """Write a model of transformers as the original code would."""
    model, tokenizer = theirs
    state = renamed(model.state_dict())
    tokenizer.save_pretrained(folder)
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    config = {
        "model_type": "multi_modality",
        "aligner_config": {"params": {"depth": 2, "input_dim": 32, "n_embed": 32, "projector_type": "mlp_gelu"}},
        "gen_aligner_config": {"params": {"depth": 2, "input_dim": 8, "n_embed": 32, "projector_type": "mlp_gelu"}},
        "gen_head_config": {"params": {"image_token_embed": 32, "image_token_size": 64, "n_embed": 32}},
        "gen_vision_config": {"cls": "VQ-16", "params": {
            "image_token_size": 64, "n_embed": 8, "ch": 32, "encoder_ch_mult": [1, 1, 2, 2],
            "decoder_ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "z_channels": 16}},
        "language_config": {"model_type": "llama", "vocab_size": 330, "hidden_size": 32, "intermediate_size": 48,
                            "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256},
        "vision_config": {"params": {"image_size": 32, "head_dim": 8, "select_layer": -1}},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def load(folder: Path) -> Pipeline:
    pickled = (folder / "pytorch_model.bin").is_file()
    return anymodal.from_pretrained(folder, device="cpu", dtype="float32", allow_pickle=pickled)


def test_it_is_the_model_that_transformers_has(theirs: tuple[Any, Any], folder: Path, noise_picture: Any) -> None:
    model, pipe = theirs[0], load(folder)
    seen = to_pixels(noise_picture(), 32, 32)
    batch = pipe._batch([pipe.encoder.encode([Look(seen), "What is this?", " a dog"])])
    with torch.no_grad():
        expected = model(input_ids=batch.ids, pixel_values=batch.look_pixels).logits
        ours = pipe.model(batch).logits
        codes = model.model.vqmodel.encode(seen[None]).image_tokens.view(1, 4, 4)
        shown = model.decode_image_tokens(codes.flatten(1)).permute(0, 3, 1, 2)
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-4
    assert torch.equal(ours.argmax(-1), expected.argmax(-1))
    assert torch.equal(pipe.image_tokenizer.encode(seen[None]), codes)
    torch.testing.assert_close(pipe.image_tokenizer.decode(codes), shown.clamp(-1, 1), atol=1e-4, rtol=0.0)
    with torch.no_grad():
        drawn = pipe.model(pipe.prepare([["a dog", Draw(noise_picture())]])).image_logits[0, -2]
        hidden = pipe.model(pipe.prepare([["a dog", Draw(noise_picture())]])).hidden[0, -2]
        assert float((drawn - model.model.generation_head(hidden)).abs().max()) < 1e-4


def test_a_pickle_is_read_only_when_allowed(folder: Path) -> None:
    if (folder / "pytorch_model.bin").is_file():
        with pytest.raises(ValueError, match="pytorch_model.bin is a pickle, which can run code"):
            anymodal.from_pretrained(folder, device="cpu", dtype="float32")
    else:
        assert load(folder).model.look_tokens == 16


def test_it_goes_out_as_it_came_in(theirs: tuple[Any, Any], folder: Path, tmp_path: Path) -> None:
    pipe = load(folder)
    pipe.save_pretrained(tmp_path / "ours")
    anymodal.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "out", layout="janus-original")
    before, after = renamed(theirs[0].state_dict()), load_file(tmp_path / "out" / "model.safetensors")
    dropped = {"gen_vision_model.quantize.codebook_used", "vision_model.vision_tower.attn_pool.latent"}
    assert before.keys() - dropped <= after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before if name not in dropped)
    assert "vision_model.vision_tower.attn_pool.latent" in after
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )


def test_it_goes_out_for_transformers_too(theirs: tuple[Any, Any], folder: Path, tmp_path: Path) -> None:
    from transformers import JanusForConditionalGeneration

    load(folder).save_pretrained(tmp_path / "out", layout="janus")
    again = JanusForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([list(range(7, 20))])
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, theirs[0](input_ids=ids).logits)
