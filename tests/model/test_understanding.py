from typing import Any

import pytest
import torch

from anymodal.model.config import UnderstandingConfig
from anymodal.model.understanding import UnderstandingEncoder


def test_equals_siglip_of_transformers() -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        layer_norm_eps=1e-6,
        vision_use_head=False,
    )
    theirs: Any = SiglipVisionModel(config)
    theirs.eval()
    shape = UnderstandingConfig(image_size=16, patch_size=4, dim=16, depth=2, num_heads=2, hidden_dim=32)
    ours = UnderstandingEncoder(shape, out_dim=8).eval()
    names = {
        "vision_model.": "",
        "embeddings.patch_embedding": "patch_embedding",
        "embeddings.position_embedding.weight": "position_embedding",
        "encoder.layers": "blocks",
        "self_attn.": "",
        "layer_norm": "norm_",
        "mlp.fc": "fc_",
        "post_norm_": "norm",
        "post_layernorm": "norm",
    }
    state = {name: tensor for name, tensor in ours.state_dict().items() if name.startswith("connector")}
    for name, tensor in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = tensor
    ours.load_state_dict(state)
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        features = theirs(pixels).last_hidden_state
        torch.testing.assert_close(ours(pixels), ours.connector(features), atol=1e-5, rtol=1e-5)


def test_merging_joins_neighbours() -> None:
    torch.manual_seed(0)
    config = UnderstandingConfig(image_size=32, patch_size=4, dim=12, depth=0, num_heads=2, merge=2, connector_depth=1)
    encoder = UnderstandingEncoder(config, out_dim=5)
    assert config.num_tokens == 16
    pixels = torch.randn(1, 3, 32, 32)
    before = encoder(pixels)
    assert before.shape == (1, 16, 5)
    pixels[0, :, 8:16, 16:24] += 1  # the third of the second row of merged patches
    moved = (encoder(pixels) - before).abs().sum(-1)[0] > 0
    assert torch.nonzero(moved).flatten().tolist() == [4 + 2]


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="reads 64 x 64 pixels, got \\[32, 64\\]"):
        UnderstandingEncoder(UnderstandingConfig(depth=1), out_dim=8)(torch.zeros(1, 3, 32, 64))
    with pytest.raises(ValueError, match="patch_size x merge must divide image_size"):
        UnderstandingConfig(image_size=20, patch_size=8)
    with pytest.raises(ValueError, match="num_heads must divide dim"):
        UnderstandingConfig(dim=32, num_heads=3)
