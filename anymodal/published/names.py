"""Names of tensors, theirs and ours: one table that is read in both directions."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor, nn

from anymodal.tokens.tensors import misfit

Change = Callable[[Tensor], Tensor]


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Rule:
    """One line of a table: tensors called `ours` here are called `theirs` there.

    A `*` stands for any text, the same on both sides. `read` turns their tensor into ours, `write` ours into theirs.

    >>> Rule("blocks.*.norm.weight", "layers.*.ln.weight").to_theirs("blocks.3.norm.weight")
    'layers.3.ln.weight'
    """

    ours: str
    theirs: str
    read: Change = _same
    write: Change = _same

    def __post_init__(self) -> None:
        """Check that what stands for `*` has a place on either side."""
        assert self.ours.count("*") == self.theirs.count("*"), f"{self.ours} and {self.theirs} differ in their *"

    def to_theirs(self, name: str) -> str | None:
        """Return what they call our tensor `name`, None where this line does not speak of it."""
        found = _pattern(self.ours).fullmatch(name)
        if found is None:
            return None
        parts = iter(found.groups())
        return re.sub(r"\*", lambda _: next(parts), self.theirs)


@cache
def _pattern(source: str) -> re.Pattern[str]:
    return re.compile(re.escape(source).replace(r"\*", "(.+?)"))


@dataclass(frozen=True)
class Names:
    """A table of rules; the first that speaks of a tensor holds.

    `ignored` are patterns of their tensors that we have no use for, such as buffers that follow from the config.

    >>> import torch
    >>> names = Names([Rule("head.weight", "lm_head.weight")])
    >>> list(names.write({"head.weight": torch.zeros(2, 2)}))
    ['lm_head.weight']
    """

    rules: Sequence[Rule]
    ignored: Sequence[str] = ()

    def find(self, ours: str) -> tuple[str, Rule]:
        """Return what they call our tensor, and the line that says so.

        Raises:
            ValueError: no line speaks of it.
        """
        for rule in self.rules:
            if (theirs := rule.to_theirs(ours)) is not None:
                return theirs, rule
        raise ValueError(f"this layout has no tensor for our {ours}; the model cannot be expressed in it.")

    def read(self, tensors: Mapping[str, Tensor], module: nn.Module, where: str) -> None:
        """Fill `module`, which may be on the meta device, with their tensors; nothing is copied that need not be.

        Raises:
            ValueError: a tensor is missing, of another shape or type, or unknown; theirs are named.
        """
        state: dict[str, Tensor] = {}
        missing, others, used = list[str](), list[str](), set[str]()
        for ours, expected in module.state_dict().items():
            theirs, rule = self.find(ours)
            if theirs not in tensors:
                missing.append(theirs)
                continue
            used.add(theirs)
            stored = tensors[theirs]
            try:
                state[ours] = rule.read(stored)
            except (IndexError, RuntimeError) as error:
                others.append(f"{theirs}: {list(stored.shape)} cannot become {list(expected.shape)} ({error})")
                continue
            if wrong := misfit(expected, state[ours]):
                others.append(f"{theirs}: {wrong}")
        unknown = [name for name in tensors if name not in used and not self._is_ignored(name)]
        _refuse(where, missing, unknown, others)
        module.load_state_dict(state, assign=True)

    def write(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our tensors under their names.

        Raises:
            ValueError: the layout has no place for one of them.
        """
        return dict(self._written(state))

    def _written(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for ours, tensor in state.items():
            theirs, rule = self.find(ours)
            yield theirs, rule.write(tensor.detach()).contiguous()

    def _is_ignored(self, name: str) -> bool:
        return any(_pattern(pattern).fullmatch(name) for pattern in self.ignored)


def under(ours: str, theirs: str, rules: Sequence[Rule]) -> list[Rule]:
    """Return `rules` with a prefix on either side: the table of a part within a whole."""
    return [Rule(ours + rule.ours, theirs + rule.theirs, rule.read, rule.write) for rule in rules]


def linear_of_conv(ours: str, theirs: str) -> list[Rule]:
    """Return the rules of a linear map that they hold as a 1 x 1 convolution."""
    weight = Rule(f"{ours}.weight", f"{theirs}.weight", _without_sides, lambda t: t[:, :, None, None])
    return [weight, Rule(f"{ours}.bias", f"{theirs}.bias")]


def _without_sides(weight: Tensor) -> Tensor:
    """Drop the sides of a 1 x 1 kernel; of another kernel they stay, so that its shape is refused."""
    return weight.squeeze(-1).squeeze(-1)


def _refuse(where: str, missing: Sequence[str], unknown: Sequence[str], others: Sequence[str]) -> None:
    problems = [f"missing tensors {list(missing)[:5]}"] * bool(missing)
    problems += [f"unknown tensors {list(unknown)[:5]}"] * bool(unknown)
    problems += [f"other shapes or types ({'; '.join(list(others)[:5])})"] * bool(others)
    if problems:
        listed = ", ".join(problems)
        raise ValueError(f"{where} does not fit its config: {listed}; use the files of one model together.")
