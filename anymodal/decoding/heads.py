"""From hidden states to ids: which rows need which head, guidance between rows, and one choice a row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from anymodal.decoding.choice import Choice, Settings, choose, guide, guide_three_ways
from anymodal.decoding.native import native_gumbel
from anymodal.decoding.noise import Noise, gumbel
from anymodal.decoding.request import Request, Ticket
from anymodal.model.unified import AnyModal
from anymodal.tokens.grammar import Grammar, stack_grammars

TEXT, CODE, FORCED, DONE = range(4)


@dataclass(eq=False)
class Live:
    """A request that is being written.

    Attributes:
        ticket: what it has written.
        slots: its rows: its own, then those that guidance compares with.
        state: of the grammar before the next id.
        text_left: ids that it may still write outside of pictures.
        room: ids that the context still holds.
        images_left: pictures that it may still begin; None is as many as fit.
        in_picture: is a picture begun and not closed.
        drawn_from: the position of the last picture's first id.
        kind: of the state.
        kinds: of all states of its grammar.
        ended: is nothing more to come.
    """

    ticket: Ticket
    slots: list[int]
    state: int
    text_left: int
    room: int
    images_left: int | None
    in_picture: bool
    drawn_from: int
    kind: int
    kinds: frozenset[int]
    ended: bool = False

    @classmethod
    def of(cls, ticket: Ticket, automata: "Automata", context: int) -> "Live":
        """Begin a request, which has no rows yet."""
        request, used = ticket.request, len(ticket.request.prompt.ids)
        state = automata.start(request.grammar)
        return cls(
            ticket=ticket,
            slots=[],
            state=state,
            kind=int(automata.kind[state]),
            kinds=automata.kinds_of(request.grammar),
            text_left=request.max_new_tokens,
            room=context - used,
            images_left=request.max_images,
            in_picture=request.bounded,
            drawn_from=used,
        )

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self.ticket.request

    @property
    def may_draw(self) -> bool:
        """May it begin a picture."""
        return self.images_left != 0 and self.room > self.request.picture_tokens

    @property
    def chooses(self) -> bool:
        """Is it, or may it come to be, inside of a picture that the model has begun."""
        return not self.request.bounded and CODE in self.kinds and (self.in_picture or self.images_left != 0)

    def write(self, index: int, boi: int, eoi: int) -> None:
        """Take an id down, and end where it is the last: of the grammar, or of what was asked for."""
        self.ticket.written.append(index)
        self.room -= 1
        if not self.request.bounded:
            self.text_left -= not self.in_picture
            if index == boi:
                self.in_picture = True
                self.images_left = None if self.images_left is None else self.images_left - 1
                self.drawn_from = len(self.request.prompt.ids) + len(self.ticket.written)
            elif index == eoi:
                self.in_picture = False
        spent = not self.in_picture and (self.text_left <= 0 or self.room <= 0)
        self.ended = self.kind == DONE or spent or index in self.request.stop_ids


class Automata:
    """The grammars of all rows as one, with what each state needs.

    Attributes:
        kind: of every state: `TEXT` and `CODE` need that head, `FORCED` allows one id alone, `DONE` none. Where nothing
            is allowed the text head finds the fault, and where `boi` alone is, whether a picture may begin.
        forced: that one id, else 0.
    """

    def __init__(self, device: torch.device, boi: int) -> None:
        """Begin without a grammar."""
        self.device, self.boi = device, boi
        self.distinct: list[Grammar] = []
        self.starts: dict[int, int] = {}
        self.grammar: Grammar
        self.kind: Tensor
        self.forced: Tensor

    def start(self, grammar: Grammar) -> int:
        """Return the start state of a grammar, which is joined to the others if it is new."""
        if id(grammar) not in self.starts:
            joined, starts = stack_grammars([*self.distinct, grammar])
            self.distinct.append(grammar)
            self.starts = {id(each): at for each, at in zip(self.distinct, starts.tolist(), strict=True)}
            self.grammar = joined.to(self.device)
            classes = self.grammar.allowed.shape[1]
            sizes = torch.bincount(self.grammar.class_of, minlength=classes)
            choices = (self.grammar.allowed * sizes).sum(1)
            first = torch.full((classes,), len(self.grammar.class_of), device=self.device)
            first = first.scatter_reduce(
                0, self.grammar.class_of, torch.arange(len(self.grammar.class_of), device=self.device), "amin"
            )
            only = first[self.grammar.allowed.int().argmax(1)]
            forces = (choices == 1) & (only != self.boi)
            self.forced = torch.where(forces, only, 0)
            kind = torch.where(self.grammar.codes_next & (choices > 0), CODE, TEXT)
            self.kind = torch.where(self.grammar.done, DONE, torch.where(forces, FORCED, kind))
        return self.starts[id(grammar)]

    def kinds_of(self, grammar: Grammar) -> frozenset[int]:
        """Return the kinds of a grammar's states."""
        start = self.start(grammar) - grammar.start
        return frozenset(self.kind[start : start + len(grammar.done)].unique().tolist())


@dataclass(frozen=True, eq=False)
class Rows:
    """The requests that choose by one head in a step, and where their hidden states are.

    `slots` holds the requests' own rows first, then the unconditional ones of the guided, then those that see pictures
    alone; `lives` are the places of the requests among all, `guided` those of the guided among these, `three_way` those
    of three-way guidance among the guided. Slots `in_order` count from zero on.
    """

    lives: Int[Tensor, " b"]
    slots: Int[Tensor, " r"]
    seeds: Int[Tensor, " b"]
    settings: Settings
    guided: Int[Tensor, " g"]
    three_way: Int[Tensor, " t"]
    scale: Float[Tensor, " g"]
    image_scale: Float[Tensor, " t"]
    interval: Int[Tensor, "2 g"] | None
    in_order: bool

    @classmethod
    def of(cls, lives: Sequence[Live], places: Sequence[int], kind: int, device: torch.device) -> "Rows":
        """Gather what the requests at `places` need to choose by the head of a kind."""
        chosen = [lives[place] for place in places]
        codes = kind == CODE
        guided = [i for i, live in enumerate(chosen) if codes and len(live.slots) > 1]
        three_way = [place for place, i in enumerate(guided) if len(chosen[i].slots) > 2]  # noqa: PLR2004
        slots = [live.slots[0] for live in chosen] + [chosen[i].slots[1] for i in guided]
        slots += [chosen[guided[place]].slots[2] for place in three_way]
        images = [chosen[i].request.image for i in guided]
        limits = None
        if any(image.guidance_interval != (0.0, 1.0) for image in images):
            limits = _tensor([_interval(chosen[i]) for i in guided], device).T
        return cls(
            lives=_tensor(places, device),
            slots=_tensor(slots, device),
            seeds=_tensor([live.request.seed for live in chosen], device),
            settings=Settings.of([live.request.image if codes else live.request.text for live in chosen], device),
            guided=_tensor(guided, device),
            three_way=_tensor(three_way, device),
            scale=_scales([image.guidance_scale for image in images], device),
            image_scale=_scales([images[place].image_guidance_scale for place in three_way], device),
            interval=limits,
            in_order=slots == list(range(len(slots))),
        )

    def of_hidden(self, hidden: Float[Tensor, "s d"]) -> Float[Tensor, "r d"]:
        """Return the hidden states at `slots`."""
        return hidden if self.in_order and len(hidden) == len(self.slots) else hidden[self.slots]

    def guide(self, logits: Float[Tensor, "r v"], positions: Int[Tensor, " b"]) -> Float[Tensor, "b v"]:
        """Compare the logits of a request's rows, in the order of `slots`."""
        sizes = [len(self.lives), len(self.guided), len(self.three_way)]
        conditional, unconditional, pictures = logits.split(sizes)
        if not len(self.guided):
            return conditional
        everyone = len(self.guided) == len(self.lives)
        own = conditional if everyone else conditional[self.guided]
        pushed = guide(own, unconditional, self.scale)
        if len(self.three_way):
            mine = self.three_way
            by_both = guide_three_ways(own[mine], pictures, unconditional[mine], self.scale[mine], self.image_scale)
            pushed = pushed.index_copy(0, mine, by_both)
        if self.interval is not None:
            here = positions[self.guided]
            inside = (self.interval[0] <= here) & (here < self.interval[1])
            pushed = torch.where(inside[:, None], pushed, own)
        return pushed if everyone else conditional.index_copy(0, self.guided, pushed)


@dataclass(eq=False)
class Heads:
    """The heads of a model, asked for the rows that need them.

    Where there are `whole` rows, a head is computed for so many, so that its shape does not depend on the batch.
    """

    model: AnyModal
    whole: int
    text_ids: Tensor = field(init=False)
    boi: int = field(init=False)
    noise: Noise = field(init=False)

    def __post_init__(self) -> None:
        """Remember the ids of the text head, and who makes noise: the native kernel, where the model has it."""
        self.noise = gumbel if self.model.transformer.stack is None else native_gumbel
        self.text_ids = torch.arange(self.model.num_text_rows, device=self.model.device)
        self.boi = self.model.vocabulary.special("boi")

    def code_logits(self, hidden: Float[Tensor, "s d"], rows: Rows, positions: Int[Tensor, " b"]) -> Tensor:
        """Return guided logits over the image codes."""
        return rows.guide(self._scored(self.model.image_logits, hidden, rows), positions)

    def _scored(self, head: Callable[[Tensor], Tensor], hidden: Float[Tensor, "s d"], rows: Rows) -> Tensor:
        if not self.whole:
            return head(rows.of_hidden(hidden))
        return head(F.pad(hidden, (0, 0, 0, self.whole - len(hidden))))[rows.slots]

    def codes(self, hidden: Float[Tensor, "s d"], rows: Rows, positions: Int[Tensor, " b"]) -> Choice:
        """Choose codes."""
        logits = self.code_logits(hidden, rows, positions)
        where = {"ids": self.model.image_ids, "seeds": rows.seeds, "positions": positions}
        return choose(logits, rows.settings, **where, noise=self.noise)

    def texts(
        self,
        hidden: Float[Tensor, "s d"],
        rows: Rows,
        positions: Int[Tensor, " b"],
        grammar: Grammar,
        state: Int[Tensor, " b"],
        closed: Sequence[int],
    ) -> Choice:
        """Choose what the grammar allows outside of pictures; rows in `closed` must not begin one."""
        logits = self._scored(self.model.text_logits, hidden, rows)
        allowed = grammar.mask(state)[:, : self.model.num_text_rows]
        if closed:
            allowed[_tensor(closed, allowed.device), self.boi] = False
        where = {"ids": self.text_ids, "seeds": rows.seeds, "positions": positions}
        return choose(logits, rows.settings, **where, allowed=allowed, noise=self.noise)


def _interval(live: Live) -> list[int]:
    """Return the positions from and up to which guidance acts."""
    request = live.request
    tokens = request.longest if request.bounded else request.picture_tokens
    return [live.drawn_from + round(share * tokens) for share in request.image.guidance_interval]


def _scales(values: Sequence[float | None], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)  # rounded as the logits are, and no more


def _tensor(values: Sequence[object], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device=device)
