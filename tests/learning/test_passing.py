import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from anymodal.learning import passing
from anymodal.learning.config import RunConfig
from anymodal.learning.passing import through_of
from anymodal.model.config import AnyModalConfig, TransformerConfig
from anymodal.model.unified import AnyModal
from anymodal.tokens.batch import Batch
from anymodal.tokens.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
SHAPE = TransformerConfig(dim=32, depth=3, num_heads=2, num_kv_heads=1, head_dim=16, hidden_dim=48, dropout=0.1)


def batch(length: int) -> Batch:
    """Make two packed rows: documents of a third and the rest, and padding."""
    documents = torch.zeros(2, length, dtype=torch.long)
    documents[0, length // 3 :], documents[1], documents[1, -2:] = 1, 2, -1
    ids = torch.randint(0, 40, (2, length), generator=torch.Generator().manual_seed(length))
    positions = torch.arange(length).expand(2, -1) - torch.where(documents == 1, length // 3, 0)
    return Batch(ids=ids, targets=ids.roll(-1, 1), positions=positions, documents=documents)


def steps(run: RunConfig, lengths: tuple[int, ...]) -> tuple[AnyModal, list[float], int]:
    """Take steps of gradient descent; return the model, the losses and the bytes that the last step kept for later."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.build(text_size=30, specials={"pad": 0}, codebook_size=10)
    model, losses, kept = AnyModal(AnyModalConfig(transformer=SHAPE), vocabulary).train(), list[float](), 0
    model.transformer.through = through_of(run)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}

    def keep(tensor: Any) -> Any:
        nonlocal kept
        kept += tensor.nbytes if tensor.untyped_storage().data_ptr() not in own else 0
        return tensor

    for step, length in enumerate(lengths):
        torch.manual_seed(step)
        optimizer.zero_grad()
        kept = 0
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = torch.stack([part.total for part in model(batch(length)).losses.values()]).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses, kept


def test_a_plain_run_calls_its_blocks() -> None:
    assert through_of(RunConfig()) is None


def test_activations_that_are_computed_again_change_no_bit_and_take_less_memory() -> None:
    plain, losses, kept = steps(RunConfig(), (12, 9))
    again, same_losses, less = steps(RunConfig(checkpoint_activations=True), (12, 9))
    assert losses == same_losses, "dropout draws the same numbers again"
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert less < kept / 3


def compare(checkpoint_activations: bool) -> dict[str, Any]:
    """Take compiled steps of several lengths and plain ones; tell what differs, and how many graphs there are."""
    passing.BACKEND = "aot_eager"
    run = RunConfig(compile=True, checkpoint_activations=checkpoint_activations)
    compiled, losses, _ = steps(run, (12, 9, 15))
    stats = torch._dynamo.utils.counters["stats"]
    graphs = stats["unique_graphs"]
    with torch.no_grad():
        compiled.eval()(batch(7))
    plain, expected, _ = steps(RunConfig(), (12, 9, 15))
    pairs = zip(compiled.parameters(), plain.parameters(), strict=True)
    off = max(float((one - other).detach().abs().max()) for one, other in pairs)
    plain.load_state_dict(compiled.state_dict())
    return {"losses": losses, "expected": expected, "graphs": graphs, "later": stats["unique_graphs"], "off": off}


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_compiled_steps_are_the_same(checkpoint_activations: bool) -> None:
    command = [sys.executable, __file__, *(["again"] if checkpoint_activations else [])]  # free of the tests' checks
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    assert found["losses"] == pytest.approx(found["expected"], rel=1e-5)
    assert found["off"] < 1e-5
    assert found["graphs"] <= 2, "blocks and lengths share a graph"
    assert found["later"] == found["graphs"], "what is not trained is not compiled"


def test_no_compiler_is_a_mistake_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler.* leave run.compile out"):
        through_of(RunConfig(compile=True))


if __name__ == "__main__":
    print(json.dumps(compare(sys.argv[1:] == ["again"])))
