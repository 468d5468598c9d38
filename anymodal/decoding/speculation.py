"""Several codes of a picture in one pass: guess a window, compute it at once, keep what proves right.

"jacobi" (arXiv:2305.10427) samples every place of the window with the noise of that place. Where a guess equals what is
sampled behind it, plain sampling would have written the same: the ids are those of plain sampling. "accept"
(arXiv:2410.01699) keeps a guess with the probability of speculative sampling (arXiv:2211.17192, algorithm 1):
more hold, and the ids change, not their distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anymodal.decoding.choice import choose, prepared
from anymodal.decoding.config import EngineConfig
from anymodal.decoding.heads import CODE, FORCED, Automata, Heads, Live, Rows
from anymodal.decoding.noise import gumbel

_STRIDE, _COIN, _RESIDUAL, _GUESS = 1_000_003, 1, 2, 3  # keep the noises of "accept" apart
_PLACES = 1 << 21  # more than a window has places and codes


@dataclass(frozen=True, eq=False)
class Window:
    """What is guessed for the requests of a batch: the id just written, then guesses, each with the state before it."""

    ids: Int[Tensor, "b w"]
    states: Int[Tensor, "b w"]

    @property
    def size(self) -> int:
        """Ids that one pass computes."""
        return self.ids.shape[1]


@dataclass(eq=False)
class _Memory:
    """What a request has from its last pass.

    `guesses` are ids for the places behind the next one; `chances` how likely each code of them was, where "accept"
    asks; `fixed` is the next id where a rejected guess has said it, else -1.
    """

    guesses: Int[Tensor, " w"]
    chances: Float[Tensor, "w k"] | None = None
    fixed: int = -1
    passes: int = 0


class Speculation:
    """The guesses of the requests that run; their tickets count how many held."""

    def __init__(self, config: EngineConfig, heads: Heads, automata: Automata) -> None:
        """Guess for one engine."""
        self.config, self.heads, self.automata = config, heads, automata
        self._memory: dict[int, _Memory] = {}

    def possible(self, lives: Sequence[Live]) -> bool:
        """Say whether all that runs is inside of pictures."""
        return self.config.speculation != "none" and all(live.kind in (CODE, FORCED) for live in lives)

    def forget(self, live: Live) -> None:
        """Drop the guesses of a request that has ended."""
        self._memory.pop(id(live), None)

    def fixed(self, lives: Sequence[Live], ids: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Replace what was chosen where a rejected guess has said already what comes next."""
        told = torch.tensor([self._of(live).fixed for live in lives], device=ids.device)
        for live in lives:
            self._of(live).fixed = -1
        return torch.where(told >= 0, told, ids)

    def window(self, lives: Sequence[Live], ids: Int[Tensor, " b"], state: Int[Tensor, " b"]) -> Window:
        """Guess what follows the ids just written: what the last pass sampled, and behind it the last code again."""
        left = [int(self.automata.grammar.steps_left[live.state].clamp(max=self.config.window)) for live in lives]
        size = max(1, min(self.config.window, max(left)))
        known = torch.stack([_padded(self._of(live).guesses, size - 1) for live in lives])
        code_of = self.heads.model.code_of
        last = torch.where(code_of[ids] >= 0, ids, self.heads.model.image_ids[0])
        columns, states = [ids], [state]
        for place in range(size - 1):
            here = states[-1]
            guess = torch.where(known[:, place] >= 0, known[:, place], last)
            guess = torch.where(self.automata.kind[here] == CODE, guess, self.automata.forced[here])
            last = torch.where(code_of[guess] >= 0, guess, last)
            columns.append(guess)
            states.append(self.automata.grammar.advance(here, guess))
        return Window(torch.stack(columns, 1), torch.stack(states, 1))

    def judge(
        self,
        lives: Sequence[Live],
        window: Window,
        hidden: Float[Tensor, "s w d"],
        rows: Rows,
        positions: Int[Tensor, " b"],
    ) -> Int[Tensor, " b"]:
        """Sample behind every place of the window, and count the guesses that hold; `positions` follow the first id."""
        where = positions[:, None] + torch.arange(window.size, device=positions.device)
        scores = self.heads.model.image_logits(hidden[rows.slots])
        logits = torch.stack([rows.guide(scores[:, at], where[:, at]) for at in range(window.size)], 1)
        judged = self._accept if self.config.speculation == "accept" else self._equal
        kept = judged(lives, window, logits, rows, where)
        guessed = self._leading(window, torch.ones_like(window.ids[:, 1:], dtype=torch.bool))
        for live, count, held in zip(lives, guessed.tolist(), kept.tolist(), strict=True):
            live.ticket.guessed += count
            live.ticket.held += held
        return kept

    def _equal(
        self, lives: Sequence[Live], window: Window, logits: Tensor, rows: Rows, where: Int[Tensor, "b w"]
    ) -> Int[Tensor, " b"]:
        """Keep the guesses that equal what is sampled behind what comes before them."""
        ids = self.heads.model.image_ids
        chosen = [
            choose(logits[:, at], rows.settings, ids=ids, seeds=rows.seeds, positions=where[:, at])
            for at in range(window.size)
        ]
        sampled = self._lawful(window, torch.stack([each.ids for each in chosen], 1))
        sound = torch.stack([each.faults == 0 for each in chosen], 1)  # behind others the next pass finds the fault
        kept = self._leading(window, (sampled[:, :-1] == window.ids[:, 1:]) & sound[:, :-1])
        for live, count, guesses in zip(lives, kept.tolist(), sampled, strict=True):
            self._of(live).guesses = guesses[count + 1 :]
        return kept

    def _accept(
        self, lives: Sequence[Live], window: Window, logits: Tensor, rows: Rows, where: Int[Tensor, "b w"]
    ) -> Int[Tensor, " b"]:
        """Keep a guess x with probability min(1, p(x) / q(x)); what replaces the first that fails is fixed."""
        model, width = self.heads.model, logits.shape[-1]
        now = torch.stack([_chances(logits[:, at], rows) for at in range(window.size)], 1)
        codes = model.code_of[window.ids[:, 1:]].clamp(min=0)
        before = self._chances_before(lives, codes, now)
        noise = _Noise(rows, [self._of(live) for live in lives])
        p, q = (each.gather(2, codes[..., None])[..., 0] for each in (now[:, :-1], before))
        lucky = noise.uniform(window.size - 1) * q < p
        is_code = self.automata.kind[window.states] == CODE
        kept = self._leading(window, lucky | ~is_code[:, :-1])
        sampled = torch.stack([noise.sample(now[:, at], at, _GUESS) for at in range(window.size)], 1)
        guesses = self._lawful(window, model.image_ids[sampled])
        every = torch.arange(len(lives), device=p.device)
        fails = (kept < window.size - 1) & is_code[every, kept]
        blank = torch.zeros_like(now[:, :1])
        left = (now[every, kept] - torch.cat((before, blank), 1)[every, kept]).clamp(min=0)
        fixed = torch.where(fails, model.image_ids[noise.sample(left, width, _RESIDUAL)], -1)
        for i, (live, count) in enumerate(zip(lives, kept.tolist(), strict=True)):
            memory = self._of(live)
            memory.guesses, memory.chances = guesses[i, count + 1 :], now[i, count + 1 :]
            memory.fixed, memory.passes = int(fixed[i]), memory.passes + 1
        return kept

    def _chances_before(
        self, lives: Sequence[Live], codes: Int[Tensor, "b w"], now: Float[Tensor, "b v k"]
    ) -> Float[Tensor, "b w k"]:
        """Return how likely each code was as a guess; one that was not sampled was certain."""
        before = torch.zeros(*codes.shape, now.shape[-1], dtype=now.dtype, device=now.device)
        before.scatter_(2, codes[..., None], 1.0)
        for i, live in enumerate(lives):
            chances = self._of(live).chances
            if chances is not None:
                count = min(len(chances), codes.shape[1])
                before[i, :count] = chances[:count]
        return before

    def _lawful(self, window: Window, sampled: Int[Tensor, "b w"]) -> Int[Tensor, "b w"]:
        """Put what the grammar forces where it leaves no choice."""
        is_code = self.automata.kind[window.states] == CODE
        return torch.where(is_code, sampled, self.automata.forced[window.states])

    def _leading(self, window: Window, holds: Bool[Tensor, "b w"]) -> Int[Tensor, " b"]:
        """Count the guesses that hold before the first that does not, within pictures."""
        kinds = self.automata.kind[window.states[:, :-1]]
        return (holds & ((kinds == CODE) | (kinds == FORCED))).int().cumprod(1).sum(1)

    def _of(self, live: Live) -> _Memory:
        if id(live) not in self._memory:
            self._memory[id(live)] = _Memory(torch.zeros(0, dtype=torch.long, device=self.heads.model.device))
        return self._memory[id(live)]


class _Noise:
    """Noise of one pass of each request, apart from that of plain sampling."""

    def __init__(self, rows: Rows, memories: Sequence[_Memory]) -> None:
        self.seeds = rows.seeds
        self.places = torch.tensor([memory.passes for memory in memories], device=rows.seeds.device) * _PLACES

    def uniform(self, count: int) -> Float[Tensor, "b w"]:
        """Return a number in (0, 1) for every place."""
        drawn = gumbel(self.seeds * _STRIDE + _COIN, self.places, torch.arange(count, device=self.seeds.device))
        return torch.exp(-torch.exp(-drawn))

    def sample(self, chances: Float[Tensor, "b k"], place: int, kind: int) -> Int[Tensor, " b"]:
        """Sample a code of every row."""
        ids = torch.arange(chances.shape[1], device=chances.device)
        return (chances.log() + gumbel(self.seeds * _STRIDE + kind, self.places + place, ids)).argmax(-1)


def _chances(logits: Float[Tensor, "b k"], rows: Rows) -> Float[Tensor, "b k"]:
    """Return how likely each code is; at temperature 0 one is certain."""
    scores, _ = prepared(logits, rows.settings)
    best = torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1])
    return torch.where(rows.settings.temperature > 0, scores.softmax(-1).double(), best.double())


def _padded(guesses: Int[Tensor, " n"], size: int) -> Int[Tensor, " w"]:
    return torch.nn.functional.pad(guesses[:size], (0, size - min(len(guesses), size)), value=-1)
