from pathlib import Path
from typing import Any

import pytest
import torch

from anymodal.__main__ import main
from anymodal.model.folder import ModelFolder
from anymodal.model.understanding import UnderstandingEncoder
from anymodal.published.layout import PublishedFolder
from anymodal.published.siglip import read_config, read_tower

TINY: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def write_tiny(folder: Path, spread: Any, *, whole: bool = False, **changes: Any) -> Any:
    """Let transformers write a tiny tower, alone or beside a text tower."""
    from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

    vision = {**TINY, **changes}
    if whole:
        text = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3,
                "vocab_size": 50, "projection_size": 24}  # fmt: skip
        model: Any = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**vision))
    model.eval()
    spread(model, 9)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("changes", [{}, {"patch_size": 16}, {"hidden_act": "gelu", "layer_norm_eps": 1e-5}])
@pytest.mark.parametrize("whole", [False, True])
def test_features_agree(changes: dict[str, Any], whole: bool, tmp_path: Path, spread: Any) -> None:
    theirs = write_tiny(tmp_path, spread, whole=whole, **changes)
    folder = PublishedFolder.open(tmp_path)
    encoder = UnderstandingEncoder(read_config(folder.config), out_dim=24)
    read_tower(folder, encoder)
    encoder.connector = torch.nn.Sequential()  # what it turns features into is ours
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = getattr(theirs, "vision_model", theirs)(pixels).last_hidden_state
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=1e-4)


def test_a_model_grows_with_it(tmp_path: Path, spread: Any, fast_tokenizer: Any, toy: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tower = write_tiny(tmp_path / "tower", spread)
    tokenizer = fast_tokenizer(["<|end|>"], {}, 300, eos_token="<|end|>")
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=1, **shape)).save_pretrained(
        tmp_path / "text"
    )
    tokenizer.save_pretrained(tmp_path / "text")
    words = ["train", "grow", "--backbone", str(tmp_path / "text"), "--image_tokenizer", str(toy.image_tokenizer)]
    words += ["--vision", str(tmp_path / "tower"), "--size", "16", "--out", str(tmp_path / "grown")]
    assert main(words) == 0
    parts = ModelFolder.load(tmp_path / "grown")
    assert parts.model.look_tokens == 16
    assert parts.model.understanding is not None
    theirs = getattr(tower, "vision_model", tower).embeddings.patch_embedding.weight
    assert torch.equal(parts.model.understanding.patch_embedding.weight, theirs)


def test_another_kind_is_named() -> None:
    with pytest.raises(ValueError, match="must be one of siglip, siglip_vision_model, got model_type 'clip'"):
        read_config({"model_type": "clip"})
    with pytest.raises(ValueError, match="hidden_act must be gelu_pytorch_tanh or gelu, got 'relu'"):
        read_config({"model_type": "siglip", "vision_config": {"hidden_act": "relu"}})
