"""What each task learns from: the samples that hold what it needs, so that every step has its share of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anymodal.data.index import Need, ShardIndex
from anymodal.data.opening import Part, parts_in
from anymodal.data.order import Source
from anymodal.data.samples import Reading


@dataclass(frozen=True)
class TaskSource:
    """A task on a part of the shards; `index` holds the samples that can serve it."""

    task: str
    index: ShardIndex
    part: Part
    source: Source


def needs_of(task: str, reading: Reading, *, recorded: bool) -> tuple[Need, ...]:
    """Return what a sample must hold for a task; where codes are `recorded`, every picture has some.

    >>> needs_of("draw", Reading(fingerprint="f00d", look_size=None), recorded=False)
    ('caption', 'codes')
    """
    coded: Need = "picture" if recorded else "codes"
    looked: Need = coded if reading.look_size is None else "picture"
    needs: dict[str, tuple[Need, ...]] = {
        "draw": ("caption", coded) if reading.prompt_dropout < 1 else (coded,),
        "answer": ("questions", looked),
        "describe": ("caption", looked),
        "text": ("caption",),
        "chat": ("turns",),
    }
    return needs[task]


def sources_of(
    index: ShardIndex, parts: Sequence[Part], shares: Mapping[str, float], reading: Reading
) -> list[TaskSource]:
    """Return every task on every part that can serve it; a task keeps its share where only some of the parts can."""
    found = []
    for task, share in shares.items():
        serving = index.holding(needs_of(task, reading, recorded=index.has_records))
        able = [(number, part) for number, part in enumerate(parts_in(serving, parts)) if sum(part.shard_sizes)]
        of_able = sum(part.ratio for _, part in able)
        scale = 1.0 if len(able) == len(parts) else sum(part.ratio for part in parts) / of_able if able else 0.0
        for number, part in able:
            name = task if len(parts) == 1 else f"{task} {number}"
            source = Source(name=name, shard_sizes=part.shard_sizes, ratio=share * part.ratio * scale)
            found.append(TaskSource(task, serving, part, source))
    return found
