import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from anymodal.__main__ import main
from anymodal.model.folder import ModelFolder
from anymodal.tokens.config import SPECIALS

TINY: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 8,
}  # fmt: skip
GRID: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied-biased": {"tie_word_embeddings": True, "attention_bias": True},
    "qwen2": {},
    "qwen2-tied": {"tie_word_embeddings": True},
    "qwen3": {},
}


SHARED = {"qwen3": {"pad_token": "<|end|>"}}  # as the tokenizers of its base models


def write_tiny(folder: Path, name: str, fast_tokenizer: Any, spread: Any, spare: int = 0) -> Any:
    """Let transformers write a tiny text model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = fast_tokenizer(["<|end|>"], {}, 300, eos_token="<|end|>", **SHARED.get(name, {}))
    config = AutoConfig.for_model(
        name.partition("-")[0], vocab_size=len(tokenizer) + spare, eos_token_id=0, bos_token_id=0, **TINY, **GRID[name]
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    spread(model, 7)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("spare", [0, 40])
@pytest.mark.parametrize("name", GRID)
def test_what_the_text_model_learned_stays(
    name: str, spare: int, tmp_path: Path, fast_tokenizer: Any, spread: Any, toy: Any
) -> None:
    theirs = write_tiny(tmp_path / "text", name, fast_tokenizer, spread, spare)
    words = ["train", "grow", "--backbone", str(tmp_path / "text"), "--image_tokenizer", str(toy.image_tokenizer)]
    small = ["--model.understanding.image_size", "16", "--model.understanding.dim", "24"]
    assert main([*words, "--out", str(tmp_path / "grown"), "--size", "16", *small]) == 0
    parts = ModelFolder.load(tmp_path / "grown")
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        expected, ours = theirs(input_ids=ids).logits, parts.model(ids).logits[..., : theirs.config.vocab_size]
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-4
    assert torch.equal(ours.argmax(-1), expected.argmax(-1))
    special = parts.model.vocabulary.special
    assert special("eos") == 0
    assert len({special(role) for role in SPECIALS}) == len(SPECIALS)
    assert parts.text_tokenizer.encode("a <boi> dog") != [special("boi")]
    assert parts.text_tokenizer.decode(parts.text_tokenizer.encode("a <boi> dog")) == "a <boi> dog"


def test_a_grown_model_learns_both(
    tmp_path: Path, fast_tokenizer: Any, spread: Any, toy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny(tmp_path / "text", "qwen3", fast_tokenizer, spread)
    words = ["train", "grow", "--backbone", str(tmp_path / "text"), "--image_tokenizer", str(toy.image_tokenizer)]
    small = ["--model.understanding.image_size", "16", "--model.understanding.dim", "24"]
    assert main([*words, "--out", str(tmp_path / "grown"), "--size", "16", *small]) == 0
    words = ["train", "finetune", "--model", str(tmp_path / "grown"), "--data.train", toy.coded]
    words += ["--out", str(tmp_path / "tuned"), "--run.steps", "30", "--run.batch_size", "8", "--run.log_every", "1"]
    words += ["--data.num_workers", "0", "--run.precision", "float32", "--optimizer.learning_rate", "0.01"]
    assert main([*words, "--stage.seq_len", "256", "--stage.ratios", "{draw: 0.5, answer: 0.5}"]) == 0
    rows = list(csv.DictReader((tmp_path / "tuned" / "logs" / "metrics.csv").read_text().splitlines()))
    for loss in ("train_text_loss", "train_image_loss"):
        seen = [float(row[loss]) for row in rows if row.get(loss)]
        assert sum(seen[-5:]) < 0.9 * sum(seen[:5]), loss


def test_another_kind_is_named(tmp_path: Path, toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "gpt2"}')
    words = ["train", "grow", "--backbone", str(tmp_path / "text"), "--image_tokenizer", str(toy.image_tokenizer)]
    assert main([*words, "--out", str(tmp_path / "grown")]) == 2
    assert "a text model must be one of llama, qwen2, qwen3, got model_type 'gpt2'" in capsys.readouterr().err
    (tmp_path / "text" / "config.json").unlink()
    assert main([*words, "--out", str(tmp_path / "grown")]) == 2
    assert "a text model must be a folder with a config.json" in capsys.readouterr().err
