import pytest
import torch
from torch import nn

from anymodal.published.names import Names, Rule, linear_of_conv, under


@pytest.mark.parametrize(
    ("rule", "ours", "theirs"),
    [
        (Rule("head.weight", "lm_head.weight"), "head.weight", "lm_head.weight"),
        (Rule("blocks.*.norm.*", "layers.*.ln.*"), "blocks.12.norm.bias", "layers.12.ln.bias"),
        (Rule("blocks.*", "*"), "blocks.0.weight", "0.weight"),
        (Rule("a+b.*", "(c).*"), "a+b.0", "(c).0"),
    ],
)
def test_rules_tell_their_name(rule: Rule, ours: str, theirs: str) -> None:
    assert rule.to_theirs(ours) == theirs
    assert rule.to_theirs(f"x.{ours}") is None
    assert rule.to_theirs(f"{ours}\n") is None
    assert rule.to_theirs(ours.replace(".", "_")) is None, "a dot is a dot"


def test_rules_have_as_many_places_on_either_side() -> None:
    with pytest.raises(AssertionError, match=r"a\.\* and b differ"):
        Rule("a.*", "b")


def test_the_first_rule_holds() -> None:
    names = Names([Rule("blocks.0.*", "first.*"), Rule("blocks.*", "layers.*"), Rule("blocks.0.weight", "never")])
    assert names.find("blocks.0.weight")[0] == "first.weight"
    assert names.find("blocks.1.weight")[0] == "layers.1.weight"
    with pytest.raises(ValueError, match=r"no tensor for our head.weight; the model cannot be expressed"):
        names.find("head.weight")
    with pytest.raises(ValueError, match=r"no tensor for our head.weight"):
        names.write({"head.weight": torch.zeros(1)})


def test_a_part_is_found_under_its_prefix() -> None:
    half = Rule("norm.*", "ln.*", lambda t: t / 2, lambda t: t * 2)
    (rule,) = under("vision.", "tower.", [half])
    assert rule.to_theirs("vision.norm.weight") == "tower.ln.weight"
    assert float(rule.read(torch.ones(1))) == 0.5
    assert float(rule.write(torch.ones(1))) == 2.0


TABLE = Names(
    [
        Rule("0.weight", "first.weight", lambda t: t.T, lambda t: t.T),
        Rule("0.bias", "first.bias"),
        *linear_of_conv("1", "second"),
    ],
    ignored=("buffers.*",),
)


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_round_trip_is_bit_equal() -> None:
    one, other = module(), module()
    theirs = TABLE.write(one.state_dict())
    assert {name: list(tensor.shape) for name, tensor in theirs.items()} == {
        "first.weight": [3, 4], "first.bias": [4], "second.weight": [2, 4, 1, 1], "second.bias": [2],
    }  # fmt: skip
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in theirs.values())
    TABLE.read({**theirs, "buffers.1": torch.zeros(1)}, other, "folder")
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())


def test_reading_fills_empty_modules_without_a_copy() -> None:
    theirs = {name: tensor.bfloat16() for name, tensor in TABLE.write(module().state_dict()).items()}
    with torch.device("meta"):
        empty = module()
    TABLE.read(theirs, empty, "folder")
    filled = empty.state_dict()
    assert {tensor.dtype for tensor in filled.values()} == {torch.bfloat16}
    assert filled["1.weight"].data_ptr() == theirs["second.weight"].data_ptr()
    assert filled["0.weight"].data_ptr() == theirs["first.weight"].data_ptr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first.bias": None}, r"folder does not fit its config: missing tensors \['first.bias'\]; use the files of"),
        ({"third": torch.zeros(1)}, r"unknown tensors \['third'\]"),
        ({"first.bias": torch.zeros(3)}, r"first.bias: expected \[4\], got \[3\]"),
        ({"first.weight": torch.zeros(4, 3)}, r"first.weight: expected \[4, 3\], got \[3, 4\]"),
        ({"second.weight": torch.zeros(2, 4, 3, 3)}, r"second.weight: expected \[2, 4\], got \[2, 4, 3, 3\]"),
        ({"second.weight": torch.zeros(())}, r"second.weight: expected \[2, 4\], got \[\]"),
        (
            {"first.bias": torch.zeros(4, dtype=torch.int64)},
            "first.bias: expected a floating .* torch.int64",
        ),
        ({"first.bias": None, "x": torch.zeros(1)}, r"missing tensors \['first.bias'\], unknown tensors \['x'\]"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, torch.Tensor | None], message: str) -> None:
    theirs = {**TABLE.write(module().state_dict()), **change}
    left = module()
    before = {name: tensor.clone() for name, tensor in left.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        TABLE.read({name: tensor for name, tensor in theirs.items() if tensor is not None}, left, "folder")
    assert all(torch.equal(left.state_dict()[name], tensor) for name, tensor in before.items())


def test_what_cannot_be_read_is_named() -> None:
    names = Names([Rule("weight", "theirs", lambda t: t[:, :, 0], lambda t: t[..., None]), Rule("bias", "bias")])
    with pytest.raises(ValueError, match=r"theirs: \[4, 3\] cannot become \[4, 3\] \(too many indices"):
        names.read({"theirs": torch.zeros(4, 3), "bias": torch.zeros(4)}, nn.Linear(3, 4), "folder")
