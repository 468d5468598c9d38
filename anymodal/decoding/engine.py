"""Requests of any kind and length in one batch, which rows enter and leave as they come and end."""

from collections import deque
from collections.abc import Sequence
from traceback import clear_frames

import torch
from jaxtyping import Int
from torch import Tensor

from anymodal.decoding.choice import FAULTS, SamplingError
from anymodal.decoding.chosen import Chosen
from anymodal.decoding.config import EngineConfig
from anymodal.decoding.forward import Forward
from anymodal.decoding.heads import CODE, TEXT, Automata, Heads, Live, Rows
from anymodal.decoding.native_blocks import NativeBlocks
from anymodal.decoding.prefill import Prefix, PrefixStore, Reader, digests
from anymodal.decoding.request import BrokenOffError, Request, Ticket
from anymodal.decoding.room import with_room
from anymodal.decoding.speculation import Speculation
from anymodal.model.cache import KVCache
from anymodal.model.unified import AnyModal
from anymodal.tokens.document import TokenSequence


class Engine:
    """Write requests as they come; every step chooses one id for each of those that run.

    The ids of a request depend on it alone: noise is a function of (seed, position), so batches, orders and caches
    change nothing (in float64 exactly; in narrower types up to near-ties, or exactly with `batch_invariant`).
    `kept` rows that have ended are remembered: a prompt that begins like one of them is not read again.
    """

    def __init__(self, model: AnyModal, config: EngineConfig | None = None, *, kept: int = 0) -> None:
        """Serve `model`, whose mode (training or not) is the caller's."""
        self.model, self.config = model, config or EngineConfig()
        if isinstance(model.transformer.stack, NativeBlocks):
            model.transformer.stack.look_again(model.transformer)
        self.context = model.config.transformer.max_seq_len
        self.kept = PrefixStore(kept) if kept and not self.config.batch_invariant else None
        self.reader = Reader(model, self.config, self.kept)
        self.heads = Heads(model, whole=self.config.max_rows if self.config.batch_invariant else 0)
        self.forward = Forward(model, self.config)
        self.automata = Automata(model.device, self.heads.boi)
        self.speculation = Speculation(self.config, self.heads, self.automata)
        self.lag = self.config.lag if self.config.lag is not None else int(model.device.type == "cuda")
        self.waiting: deque[Ticket] = deque()
        self.lives: list[Live] = []
        self.cache: KVCache | None = None
        self.passes = 0
        self._used = 0
        self._pending: deque[Chosen] = deque()
        self._clear_tables()

    def _clear_tables(self) -> None:
        device = self.model.device
        self.hidden = torch.zeros(0, self.model.config.transformer.dim, device=device)
        self.state = torch.zeros(0, dtype=torch.long, device=device)
        self.positions = torch.zeros(0, dtype=torch.long, device=device)
        self._owner = torch.zeros(0, dtype=torch.long, device=device)
        self._rows: dict[tuple[int, tuple[int, ...]], Rows] = {}

    @property
    def used_rows(self) -> int:
        """Rows that are taken."""
        return self._used

    @property
    def idle(self) -> bool:
        """Is nothing running or waiting."""
        return not (self.lives or self.waiting)

    def submit(self, request: Request) -> Ticket:
        """Let a request wait for its turn.

        Raises:
            ValueError: it does not fit the context, or takes more rows than there are.
        """
        budget = request.budget(self.context)
        if request.num_rows > self.config.max_rows:
            raise ValueError(
                f"this request takes {request.num_rows} rows with its guidance, the sampler computes "
                f"{self.config.max_rows} at once; raise max_rows, or guide less."
            )
        ticket = Ticket(request)
        ticket.done = budget <= 0
        if not ticket.done:
            self.waiting.append(ticket)
        return ticket

    @torch.inference_mode()
    def cancel(self, ticket: Ticket) -> None:
        """Forget a request; its rows are free at once."""
        if ticket.done:
            return
        ticket.cancelled = ticket.done = True
        if ticket in self.waiting:
            self.waiting.remove(ticket)
            return
        self._settle_all()
        self._release([live for live in self.lives if live.ticket is ticket])

    @torch.inference_mode()
    def step(self) -> None:
        """Let new requests in, choose an id for every one that runs, and read these.

        A request that cannot come in, or whose logits are no numbers, ends with an error in its ticket; the others go
        on. Where the step itself fails or is interrupted, all that run end so, and those that wait go on waiting.
        """
        try:
            self._admit()
            if self.lives:
                self._write()
        except BaseException as error:
            self._break_off(error)
            raise

    def _write(self) -> None:
        speculates = self.speculation.possible(self.lives)
        chosen, bundle = self._choose(speculates)
        self._pending.append(Chosen.of(self.lives, bundle))
        if self._in_lockstep():
            self._settle_all()
            self._detach()
            if speculates:
                self._read_window()
            else:
                self._read_written()
                self._attach()
        else:  # the device goes on before the host has seen what was chosen
            self._advance(chosen)
            while len(self._pending) > self.lag:
                self._settle()

    def _in_lockstep(self) -> bool:
        # whether a picture may begin, and its guidance, are the host's affair
        return self.lag == 0 or self.config.speculation != "none" or any(live.chooses for live in self.lives)

    # rows come

    def _admit(self) -> None:
        taken = sum(live.request.num_rows for live in self.lives)
        tickets: list[Ticket] = []
        for ticket in self.waiting:
            taken += ticket.request.num_rows
            if taken > self.config.max_rows:
                break
            tickets.append(ticket)
        if not tickets:
            return
        self._settle_all()
        if not self.lives:
            self._clear_tables()
        self._let_in(tickets)
        for _ in tickets:
            self.waiting.popleft()

    def _let_in(self, tickets: Sequence[Ticket]) -> None:
        """Begin requests together, or where that fails one after another; one that fails alone ends with the error."""
        try:
            self._begin(tickets)
            return
        except Exception as error:
            clear_frames(error.__traceback__)  # what was computed takes memory that the next try may need
            if len(tickets) == 1:
                tickets[0].error, tickets[0].done = error, True
                return
        for ticket in tickets:
            self._let_in([ticket])

    def _begin(self, tickets: Sequence[Ticket]) -> None:
        """Read the prompts of requests; all of them run then, or where that fails none."""
        self._make_room([ticket.request for ticket in tickets])
        lives = [Live.of(ticket, self.automata, self.context) for ticket in tickets]
        prompts = [[ticket.request.prompt, *ticket.request.beside()] for ticket in tickets]
        slots = iter(self._read([prompt for each in prompts for prompt in each]))
        for live, each in zip(lives, prompts, strict=True):
            live.slots = [next(slots) for _ in each]
        device = self.model.device
        self.lives += lives
        self.state = torch.cat((self.state, torch.tensor([live.state for live in lives], device=device)))
        starts = torch.tensor([live.drawn_from for live in lives], device=device)
        self.positions = torch.cat((self.positions, starts))
        self._rebuild()

    def _make_room(self, requests: Sequence[Request]) -> None:
        """Let the cache hold these requests too."""
        taken = sum(live.request.num_rows for live in self.lives)
        self.cache = with_room(
            self.cache, requests, taken=taken, model=self.model, config=self.config, bucket=self.forward.bucket
        )

    def _read(self, sequences: Sequence[TokenSequence]) -> list[int]:
        """Read prompts into rows behind those in use, which stay free where that fails."""
        assert self.cache is not None, "there is a cache before there are rows"
        try:
            slots, hidden = self.reader.read(sequences, self.cache, self._used)
        except Exception:
            for row in range(self._used, self._used + len(sequences)):
                self.cache.clear(row)
            raise
        self.hidden = torch.cat((self.hidden.to(hidden.dtype), hidden))
        self._used += len(sequences)
        return slots

    def _attach(self) -> None:
        """Give requests that have just begun a picture the rows that guidance compares with."""
        begun = [live for live in self.lives if live.in_picture and len(live.slots) == 1 and live.request.guided]
        for live in begun:
            if live.request.guides is not None:
                try:
                    guides = live.request.guides(live.ticket.sequence)
                    wanted = [guides.unconditional, *([guides.pictures] if guides.pictures is not None else [])]
                    live.slots += self._read(wanted[: live.request.num_rows - 1])
                except Exception as error:
                    live.ticket.error, live.ended = error, True
        self._release([live for live in begun if live.ended])
        if begun:
            self._rebuild()

    def _detach(self) -> None:
        """Free these rows behind the picture."""
        behind = [live for live in self.lives if live.request.guides is not None and not live.in_picture]
        freed = [slot for live in behind for slot in live.slots[1:]]
        for live in behind:
            live.slots = live.slots[:1]
        if freed:
            self._free(sorted(freed, reverse=True))
            self._rebuild()

    def _rebuild(self) -> None:
        owners = [0] * self._used
        for number, live in enumerate(self.lives):
            for slot in live.slots:
                owners[slot] = number
        self._owner = torch.tensor(owners, dtype=torch.long, device=self.model.device)
        self._rows.clear()

    # rows choose

    def _choose(self, speculates: bool) -> tuple[Int[Tensor, " b"], Int[Tensor, "4 b"]]:
        """Choose an id for every request; return ids, and for the host ids, faults, states and their kinds."""
        ids, faults = self.automata.forced[self.state], torch.zeros_like(self.state)
        for which in (TEXT, CODE):
            places = self._places(which)
            if not places:
                continue
            rows, alike = self._rows_of(which, places), len(places) == len(self.lives)
            positions, state = (each if alike else each[rows.lives] for each in (self.positions, self.state))
            if which == CODE:
                choice = self.heads.codes(self.hidden, rows, positions)
            else:
                closed = [i for i, place in enumerate(places) if self._is_closed(self.lives[place])]
                choice = self.heads.texts(self.hidden, rows, positions, self.automata.grammar, state, closed)
            if alike and self._in_lockstep():
                ids, faults = choice
                break
            due = self.automata.kind[state] == which
            ids[rows.lives] = torch.where(due, choice.ids, ids[rows.lives])
            faults[rows.lives] = torch.where(due, choice.faults, faults[rows.lives])
        if speculates:
            ids = self.speculation.fixed(self.lives, ids)
        self.state = self.automata.grammar.advance(self.state, ids)
        self.positions = self.positions + 1
        return ids, torch.stack((ids, faults, self.state, self.automata.kind[self.state]))

    def _places(self, which: int) -> tuple[int, ...]:
        """Return the requests that choose, or where the host is behind may choose, by a head."""
        known = self._in_lockstep()
        return tuple(i for i, live in enumerate(self.lives) if (live.kind == which if known else which in live.kinds))

    def _rows_of(self, which: int, places: tuple[int, ...]) -> Rows:
        if (which, places) not in self._rows:
            self._rows[which, places] = Rows.of(self.lives, places, which, self.model.device)
        return self._rows[which, places]

    @staticmethod
    def _is_closed(live: Live) -> bool:
        return not live.request.bounded and not live.may_draw

    def _read_written(self) -> None:
        """Read what was chosen for the requests that go on."""
        if self.lives:
            ids = torch.tensor([live.ticket.written[-1] for live in self.lives], device=self.model.device)
            self._advance(ids)

    def _read_window(self) -> None:
        """Read what was chosen with guesses behind it, and keep those that hold."""
        if not self.lives:
            return
        assert self.cache is not None, "there is a cache before there are rows"
        written = torch.tensor([live.ticket.written[-1] for live in self.lives], device=self.model.device)
        window = self.speculation.window(self.lives, written, self.state)
        self._count_pass()
        hidden = self.forward.window(window.ids[self._owner], self.cache, self._used)
        rows = self._rows_of(CODE, tuple(range(len(self.lives))))
        kept = self.speculation.judge(self.lives, window, hidden, rows, self.positions)
        counts = kept[self._owner]
        self.cache.keep((counts + 1).tolist(), slice(0, self._used))
        self.hidden = hidden[torch.arange(self._used, device=hidden.device), counts]
        every = torch.arange(len(kept), device=kept.device)
        self.state, self.positions = window.states[every, kept], self.positions + kept
        kinds = self.automata.kind[window.states].tolist()
        for i, (live, count) in enumerate(zip(self.lives, kept.tolist(), strict=True)):
            for place in range(1, count + 1):
                live.kind = kinds[i][place]
                live.write(int(window.ids[i, place]), self.heads.boi, self.model.vocabulary.special("eoi"))
            live.state = int(self.state[i])
        self._release([live for live in self.lives if live.ended])
        self._detach()

    def _advance(self, ids: Int[Tensor, " b"]) -> None:
        assert self.cache is not None, "there is a cache before there are rows"
        self._count_pass()
        self.hidden = self.forward(ids[self._owner], self.cache, self._used)

    def _count_pass(self) -> None:
        self.passes += 1
        for live in self.lives:
            live.ticket.passes += 1

    # rows end

    def _settle_all(self) -> None:
        while self._pending:
            self._settle()

    def _settle(self) -> None:
        """Let the host read what was chosen, and free the rows of requests that have ended."""
        chosen = self._pending.popleft()
        lives = chosen.lives
        for live, (index, fault, state, kind) in zip(lives, chosen.read(), strict=True):
            if live.ended:
                continue
            live.state, live.kind = state, kind
            if fault:
                place = self.lives.index(live)
                live.ticket.error = SamplingError(
                    f"the logits of row {place} hold {FAULTS[fault]}; check the weights, or compute in float32."
                )
                live.ended = True
                continue
            live.write(index, self.heads.boi, self.model.vocabulary.special("eoi"))
        self._release([live for live in lives if live.ended and live in self.lives])

    def _release(self, ended: Sequence[Live]) -> None:
        if not ended:
            return
        for live in ended:
            live.ended = live.ticket.done = True
            self.speculation.forget(live)
            if self.kept is not None and live.ticket.error is None:
                self._keep(live)
        keep = [i for i, live in enumerate(self.lives) if live not in ended]
        self.lives = [self.lives[i] for i in keep]
        index = torch.tensor(keep, dtype=torch.long, device=self.model.device)
        self.state, self.positions = self.state[index], self.positions[index]
        self._free(sorted((slot for live in ended for slot in live.slots), reverse=True))
        self._rebuild()

    def _free(self, slots: Sequence[int]) -> None:
        """Fill the holes that rows leave with the last rows."""
        assert self.cache is not None, "there is a cache before there are rows"
        for slot in slots:
            last = self._used - 1
            self.cache.clear(slot)
            if slot != last:
                self.cache.copy(last, slot)
                self.hidden[slot] = self.hidden[last]
                for live in self.lives:
                    live.slots = [slot if each == last else each for each in live.slots]
                self.cache.clear(last)
            self._used = last
        self.hidden = self.hidden[: self._used]

    def _break_off(self, error: BaseException) -> None:
        """End all that runs, for what a step has left half done nobody can go on with."""
        for live in self.lives:
            self.speculation.forget(live)
            live.ticket.error, live.ticket.done = BrokenOffError.by(error), True
        self.waiting = deque(ticket for ticket in self.waiting if not ticket.done)
        self.lives, self.cache, self._used = [], None, 0
        self._pending.clear()
        self._clear_tables()

    def _keep(self, live: Live) -> None:
        assert self.cache is not None and self.kept is not None, "rows that end have been in a cache"
        sequence = live.ticket.sequence
        count = self.cache.filled(live.slots[0])
        self.kept.add(Prefix(tuple(sequence.ids[:count].tolist()), digests(sequence), self.cache.save(live.slots[0])))
