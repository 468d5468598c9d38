import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anymodal.learning import flops
from anymodal.learning.config import Ratios, StageConfig
from anymodal.learning.flops import StepFlops, measured_flops, peak_flops
from anymodal.learning.stages import only_training
from anymodal.model.config import AnyModalConfig, TransformerConfig, UnderstandingConfig
from anymodal.model.unified import AnyModal
from anymodal.tokens.batch import Batch
from anymodal.tokens.vocabulary import Vocabulary

TRAINS = ((), ("transformer",), ("connector", "image_head"), ("understanding",), ("image_head",), ("text_embedding",))


def make(heads: str) -> AnyModal:
    shape = TransformerConfig(dim=64, depth=2, num_heads=4, num_kv_heads=4, head_dim=16, hidden_dim=96)
    look = UnderstandingConfig(image_size=16, patch_size=4, dim=24, depth=1, num_heads=2, hidden_dim=48)
    vocabulary = Vocabulary.build(text_size=30, specials={"pad": 0}, codebook_size=10)
    return AnyModal(AnyModalConfig(transformer=shape, heads=heads, understanding=look), vocabulary).train()  # type: ignore[arg-type]


@pytest.mark.parametrize("trains", TRAINS, ids="+".join)
@pytest.mark.parametrize("heads", ["shared", "decoupled"])
def test_close_to_what_torch_counts(heads: str, trains: tuple[str, ...]) -> None:
    model, stage = make(heads), StageConfig(trains=trains, ratios=Ratios(draw=0.5, answer=0.5))
    ids = torch.randint(1, 30, (2, 48))
    targets = torch.randint(0, 40, (2, 48))
    pixels, index = torch.zeros(1, 3, 16, 16), torch.arange(16)[None]
    batch = Batch(
        ids=ids, targets=targets, positions=torch.arange(48).expand(2, -1), look_pixels=pixels, look_index=index
    )
    counter = FlopCounterMode(display=False)
    with only_training(model, stage):
        with counter, sdpa_kernel(SDPBackend.MATH):
            torch.stack([part.total for part in model(batch).losses.values()]).sum().backward()
        ours = float(StepFlops.of(model).of_batch(batch, model.code_of))
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_padding_and_what_is_not_predicted_cost_nothing() -> None:
    model, ids = make("shared"), torch.ones(1, 6, dtype=torch.long)
    documents = torch.tensor([[0, 0, 1, 1, 1, -1]])
    positions = torch.tensor([[0, 1, 0, 1, 2, 0]])
    targets = torch.tensor([[5, -100, 6, 35, -100, -100]])
    batch = Batch(ids=ids, targets=targets, positions=positions, documents=documents)
    cost = StepFlops(token=1, pair=100, text_target=10_000, image_target=1_000_000, picture=7)
    assert float(cost.of_batch(batch, model.code_of)) == 5 + 100 * (4 + 9) + 10_000 * 2 + 1_000_000


def test_a_known_gpu_is_nominal_and_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "GEMM_S", 0.01)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200 NVL")
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == 989e12
    assert 1e6 < peak_flops(torch.device("cpu"), torch.float32) < 1e15
    assert measured_flops(torch.device("cpu"), torch.float32, size=64) > 1e6
