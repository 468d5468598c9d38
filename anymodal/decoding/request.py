"""What one row of the sampler writes, and what it has written so far."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from anymodal.decoding.config import SamplingConfig
from anymodal.tokens.document import TokenSequence
from anymodal.tokens.grammar import UNBOUNDED, Grammar


class Guides(NamedTuple):
    """The prompts that guidance compares with: without the prompt, and with its pictures alone for three-way."""

    unconditional: TokenSequence
    pictures: TokenSequence | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one row of the sampler writes.

    Sampling ends when the grammar is done, behind one of `stop_ids`, or after `max_new_tokens`, to which pictures do
    not count: one that has begun is always finished.

    Attributes:
        image: how codes are chosen.
        text: how all other ids are chosen.
        unconditional: the prompt that guidance pushes away from.
        pictures: the prompt's pictures alone, for three-way guidance.
        guides: makes these two where a grammar of text and pictures begins a picture, from all ids so far.
        max_images: most pictures that such a grammar may draw; None is as many as fit.
        picture_tokens: ids of the longest picture behind its beginning; without room for them none begins.
    """

    prompt: TokenSequence
    grammar: Grammar
    image: SamplingConfig = SamplingConfig()
    text: SamplingConfig = SamplingConfig()
    unconditional: TokenSequence | None = None
    pictures: TokenSequence | None = None
    guides: Callable[[TokenSequence], Guides] | None = None
    seed: int = 0
    max_new_tokens: int = 1024
    stop_ids: frozenset[int] = frozenset()
    max_images: int | None = None
    picture_tokens: int = 0

    def __post_init__(self) -> None:
        """Check the seed, which noise reads as 64 bits."""
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must fit 64 bits, got {self.seed}; take a smaller one.")

    @property
    def three_way(self) -> bool:
        """Does guidance compare with the prompt's pictures too."""
        return self.image.image_guidance_scale is not None and (self.pictures is not None or self.guides is not None)

    @property
    def guided(self) -> bool:
        """Does guidance need rows of its own."""
        given = self.unconditional is not None or self.guides is not None
        return given and (self.image.guidance_scale != 1.0 or self.three_way)

    @property
    def num_rows(self) -> int:
        """Rows that it takes at most."""
        return 1 + self.guided + (self.guided and self.three_way)

    @property
    def bounded(self) -> bool:
        """Does the grammar alone end it."""
        return self.longest < UNBOUNDED

    @cached_property
    def longest(self) -> int:
        """Ids that the grammar allows at most."""
        return int(self.grammar.steps_left[self.grammar.start])

    def beside(self) -> list[TokenSequence]:
        """Return the prompts of the rows beside its own that are known before it begins."""
        if not self.guided or self.unconditional is None:
            return []
        return [self.unconditional, *([self.pictures] if self.three_way and self.pictures is not None else [])]

    def budget(self, context: int) -> int:
        """Return how many ids it may write within a context; what the grammar bounds, such as a picture, is finished.

        Raises:
            ValueError: the context cannot hold them.
        """
        wanted = self.longest if self.bounded else self.max_new_tokens
        used = max(len(each.ids) for each in (self.prompt, *self.beside()))
        if used + (wanted if self.bounded else 1) > context:
            raise ValueError(
                f"the prompt has {used} tokens and {wanted} are to follow, the context holds {context}; "
                "shorten the prompt."
            )
        drawn = 0 if self.bounded or not self.picture_tokens else context
        return min(wanted + drawn, context - used)


class BrokenOffError(RuntimeError):
    """A step failed or was interrupted while it wrote a request: what failed is the cause."""

    @classmethod
    def by(cls, cause: BaseException) -> "BrokenOffError":
        """Say what broke a request off."""
        broken = cls(f"a step was broken off by {type(cause).__name__} ({cause}); submit the request again.")
        broken.__cause__ = cause
        return broken


class Ticket:
    """A request on its way: what it has written, whether it is done, what went wrong, and what it took.

    It has taken part in `passes` behind its prompt; of its ids, speculation `guessed` some, of which some `held`.

    >>> from anymodal.tokens.vocabulary import Vocabulary
    >>> from anymodal.tokens.grammar import compile_grammar
    >>> from anymodal.tokens.config import PictureLayout
    >>> vocabulary = Vocabulary(size=8, specials={"boi": 0, "eoi": 1, "eos": 2}, tables={"image": [6, 7]})
    >>> grammar = compile_grammar(vocabulary, PictureLayout(sizes=((1, 2),)), "image")
    >>> prompt = TokenSequence(torch.tensor([0]), torch.tensor([False]), ())
    >>> Ticket(Request(prompt=prompt, grammar=grammar)).done
    False
    """

    def __init__(self, request: Request) -> None:
        """Begin with nothing written."""
        self.request = request
        self.written: list[int] = []
        self.error: Exception | None = None
        self.done = False
        self.cancelled = False
        self.passes = self.guessed = self.held = 0

    @property
    def ids(self) -> Int[Tensor, " n"]:
        """What it has written so far."""
        return torch.tensor(self.written, dtype=torch.long)

    @property
    def sequence(self) -> TokenSequence:
        """Prompt and what was written behind it."""
        prompt = self.request.prompt
        grown = torch.cat((prompt.ids, self.ids))
        return TokenSequence(grown, torch.zeros(len(grown), dtype=torch.bool), prompt.looks)
