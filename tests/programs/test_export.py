from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from anymodal.__main__ import main
from anymodal.model.config import AnyModalConfig, TransformerConfig, UnderstandingConfig
from anymodal.model.folder import ModelFolder, fingerprint_of
from anymodal.model.unified import AnyModal
from anymodal.pipeline import Pipeline, find_folder, from_pretrained
from anymodal.tokens.config import ChatTemplate
from anymodal.tokens.document import Turn
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.image_config import ImageTokenizerConfig, QuantizerConfig


def janus_shaped(toy: Any) -> ModelFolder:
    """Make a model here that is a Janus by its shape."""
    torch.manual_seed(0)
    parts: ModelFolder = toy.parts()
    image = ImageTokenizerConfig(
        architecture="diffusers", channels=(32, 32, 64), blocks=1, latent_channels=16, attention_stages=(2,),
        quantizer=QuantizerConfig(kind="l2-vq", codebook_size=64, codebook_dim=8, codebook_update="gradient"),
    )  # fmt: skip
    parts.image_tokenizer = ImageTokenizer(image).eval()
    config = AnyModalConfig(
        transformer=TransformerConfig(
            dim=32, depth=2, num_heads=4, num_kv_heads=2, head_dim=8, hidden_dim=48, max_seq_len=256
        ),
        understanding=UnderstandingConfig(
            image_size=16, patch_size=4, dim=32, depth=2, num_heads=2, hidden_dim=64, activation="gelu"
        ),
        heads="decoupled",
        image_embedding_dim=8,
        image_head_dim=32,
    )
    text_size = parts.text_tokenizer.vocab_size
    vocabulary = type(parts.model.vocabulary).build(
        text_size=text_size, specials=parts.text_tokenizer.specials, codebook_size=64
    )
    parts.model = AnyModal(config, vocabulary).eval()
    return parts


def test_a_model_made_here_loads_in_transformers(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import JanusForConditionalGeneration

    parts = janus_shaped(toy)
    parts.save(tmp_path / "model")
    words = ["train", "export", "--model", str(tmp_path / "model"), "--layout", "janus"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: janus\n"
    theirs = JanusForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=ids).logits, parts.model(ids).logits, atol=1e-5, rtol=1e-4)
    assert main(["train", "export", "--model", str(tmp_path / "out"), "--out", str(tmp_path / "back")]) == 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "is not empty; export into a new folder" in capsys.readouterr().err


def test_parts_are_joined_as_the_embedded_model_was(root: Path, tmp_path: Path) -> None:
    words = ["train", "export", "--model", "emoji", "--dtype", "bfloat16"]
    words += ["--generation", str(root / "configs" / "emoji" / "generation.json")]
    words += ["--image_tokenizer", str(find_folder("emoji") / "image_tokenizer")]
    assert main([*words, "--out", str(tmp_path / "again")]) == 0
    assert fingerprint_of(tmp_path / "again") == fingerprint_of(find_folder("emoji"))


def test_another_decoder_type_and_defaults_take_the_place_of_the_models(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts: ModelFolder = toy.parts()
    parts.save(tmp_path / "model")
    with torch.no_grad():
        next(parts.image_tokenizer.decoder.parameters()).add_(1)
    parts.image_tokenizer.save_pretrained(tmp_path / "decoder")
    with torch.no_grad():
        next(parts.image_tokenizer.encoder.parameters()).add_(1)
    parts.image_tokenizer.save_pretrained(tmp_path / "other")
    (tmp_path / "defaults.json").write_text('{"best_of": 3, "image": {"guidance_scale": 2.5}}', encoding="utf-8")
    (tmp_path / "wrong.json").write_text('{"best_off": 3}', encoding="utf-8")
    words = ["train", "export", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    for options, message in (
        (["--image_tokenizer", str(tmp_path / "other")], "give one whose decoder alone learned on"),
        (["--generation", str(tmp_path / "wrong.json")], "did you mean 'best_of'?"),
        (["--dtype", "int4"], "dtype"),
    ):
        assert main([*words, *options]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    words += ["--image_tokenizer", str(tmp_path / "decoder"), "--generation", str(tmp_path / "defaults.json")]
    assert main([*words, "--dtype", "bfloat16"]) == 0
    before, after = (
        from_pretrained(tmp_path / "model", dtype="stored"),
        from_pretrained(tmp_path / "out", dtype="stored"),
    )
    assert (after.generation.best_of, after.generation.image.guidance_scale) == (3, 2.5)
    assert after.model.embedding.weight.dtype == torch.bfloat16
    assert torch.equal(after.model.embedding.weight, before.model.embedding.weight.bfloat16())
    drawn = [next(pipe.image_tokenizer.decoder.parameters()) for pipe in (before, after)]
    assert torch.equal(drawn[0] + 1, drawn[1])


def test_conversations_have_the_same_ids_in_transformers(toy: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    parts = janus_shaped(toy)
    parts.template = ChatTemplate(before_answer=" ", beside_look="\n", system=("Be kind. ",), answered=("<eos>", "!"))
    pipe = Pipeline(parts)
    pipe.save_pretrained(tmp_path / "out", layout="janus")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    turns = [Turn("user", ("what is it?",)), Turn("assistant", ("a dog",)), Turn("user", ("and this?",))]
    messages = [{"role": turn.role, "content": str(turn.parts[0])} for turn in turns]
    theirs: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert theirs["input_ids"] == pipe.encoder.encode(turns, complete=False).ids.tolist()


def test_what_a_layout_cannot_express_ends_with_code_2(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.parts().save(tmp_path / "model")
    words = ["train", "export", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert main([*words, "--layout", "janus"]) == 2
    assert "save it without a layout" in capsys.readouterr().err
    assert main([*words, "--layout", "yanus"]) == 2
    assert "layout must be one of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
