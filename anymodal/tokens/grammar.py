"""Which ids may come next: the automaton of a sequence layout, compiled to integer tables."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from anymodal.tokens.config import PictureLayout
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary

UNBOUNDED = 1 << 40
"""`steps_left` of a state from which text may go on for ever."""

MAX_STATES = 1 << 18
"""How many states the grids of a layout may take where a model may choose among them."""

STRUCTURE = ("boi", "eoi", "img", "eol", "eof", "eos")
"""Specials that a model writes itself; no other special may be generated."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Grammar:
    """Hold an automaton over classes of ids; everything is a table, so that it moves on any device without a sync.

    A state from which an id is not allowed moves to `refused`, where nothing is allowed and which no id leaves; so does
    every id after `done`, save that `done` stays: rows of a batch that are complete may be fed padding.

    Attributes:
        class_of: the class of an id.
        allowed: may an id of this class come next.
        next_state: the state after it.
        codes_next: only image codes may come next, so the image head predicts.
        done: the sequence is complete.
        steps_left: the largest number of ids until done; `UNBOUNDED` where text may go on. Prices a request.
        start: the state before the first id.
        refused: the state after an id that was not allowed.
        class_names: what the classes are called in messages.

    >>> vocabulary = Vocabulary(size=8, specials={"boi": 0, "eoi": 1, "eos": 2}, tables={"image": [6, 7]})
    >>> grammar = compile_grammar(vocabulary, PictureLayout(sizes=((1, 2),)), "image")
    >>> bool(grammar.done[grammar.check(torch.tensor([7, 6, 1]))])
    True
    >>> int(grammar.steps_left[grammar.start])
    3
    """

    class_of: Int[Tensor, " vocab"]
    allowed: Bool[Tensor, "states classes"]
    next_state: Int[Tensor, "states classes"]
    codes_next: Bool[Tensor, " states"]
    done: Bool[Tensor, " states"]
    steps_left: Int[Tensor, " states"]
    start: int
    refused: int
    class_names: tuple[str, ...]

    def advance(self, state: Int[Tensor, " b"], ids: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Move every row by one id in [0, vocab)."""
        return self.next_state[state, self.class_of[ids]]

    def mask(self, state: Int[Tensor, " b"]) -> Bool[Tensor, "b vocab"]:
        """Tell which ids may come next; in a state that is done there is none."""
        return self.allowed[state].gather(1, self.class_of.expand(state.shape[0], -1))

    def check(self, ids: Int[Tensor, " n"], state: int | None = None) -> int:
        """Follow a sequence and give its last state; `done` of that state tells whether it is complete.

        Raises:
            ValueError: an id is not allowed where it stands.
        """
        vocab = self.class_of.shape[0]
        outside = (ids < 0) | (ids >= vocab)
        classes = self.class_of[torch.where(outside, 0, ids)].tolist()
        refused = set(torch.nonzero(outside).flatten().tolist())
        allowed, next_state = self.allowed.cpu().numpy(), self.next_state.cpu().numpy()
        at = self.start if state is None else state
        for position, kind in enumerate(classes):
            if position in refused or not allowed[at, kind]:
                names = [name for name, may in zip(self.class_names, allowed[at], strict=True) if may]
                what = f"outside of [0, {vocab})" if position in refused else f"a {self.class_names[kind]} id"
                raise ValueError(
                    f"id {int(ids[position])} at position {position} is {what}, "
                    f"but here may stand only: {', '.join(names) or 'nothing, the sequence is complete'}"
                )
            at = int(next_state[at, kind])
        return at

    def to(self, device: torch.device | str) -> "Grammar":
        """Give the same grammar on another device."""
        names = ("class_of", "allowed", "next_state", "codes_next", "done", "steps_left")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def compile_grammar(
    vocabulary: Vocabulary,
    layout: PictureLayout,
    want: Literal["text", "image", "any"],
    *,
    text_tokenizer: TextTokenizer | None = None,
    size: tuple[int, int] | None = None,
) -> Grammar:
    """Compile what a model may write after a prompt.

    `text`: text ids, then EOS. `any`: text and whole pictures in any order, then EOS. `image`: one whole picture and
    EOI, from where `DocumentEncoder.prompt_image` with the same `size` stops: behind BOI, or, in `rows` with a size,
    behind IMG.

    Args:
        vocabulary: where the ids come from.
        layout: how a picture is written.
        want: what is generated.
        text_tokenizer: spells the headers of `rows`; where given, only its own ids count as text.
        size: the one allowed grid (rows, columns); None allows those of the layout, only the first ones where all
            together take more than `MAX_STATES` states.

    Raises:
        ValueError: the layout lacks `size`, `rows` came without a text tokenizer, or a special is missing.
    """
    if want not in ("text", "image", "any"):
        raise ValueError(f"want must be 'text', 'image' or 'any', not {want!r}")
    if size is not None and size not in layout.sizes:
        raise ValueError(
            f"this layout holds pictures of {spell_sizes(layout.sizes)} codes, not of {spell_sizes([size])}"
        )
    sizes = _first_of(layout.sizes) if size is None else (size,)
    headers: dict[tuple[int, int], list[int]] = {}
    if layout.kind == "rows" and want != "text":
        if text_tokenizer is None:
            raise ValueError("the layout 'rows' spells its headers as text: hand in text_tokenizer")
        headers = {grid: text_tokenizer.encode(header_text(grid)) for grid in sizes}
    builder = _Builder(vocabulary, layout, headers, text_tokenizer)
    done = builder.state(steps_left=0, done=True)
    if want == "image":
        picture = builder.picture(sizes, then=done)
        start = builder.entry[sizes[0]] if headers and size is not None else picture
    else:
        start = builder.state(steps_left=UNBOUNDED)
        builder.text_from(start)
        builder.edge(start, "eos", done)
        if want == "any":
            builder.edge(start, "boi", builder.picture(sizes, then=start))
    return builder.grammar(start, done)


def stack_grammars(grammars: Sequence[Grammar]) -> tuple[Grammar, Int[Tensor, " b"]]:
    """Join the grammars of the rows of a batch into one automaton; give it with the start state of every row.

    Raises:
        ValueError: no grammar, or grammars of vocabularies that differ in size.
    """
    if not grammars:
        raise ValueError("a batch needs at least one grammar; the list is empty")
    if len({grammar.class_of.shape[0] for grammar in grammars}) > 1:
        raise ValueError("grammars of one batch must share a vocabulary, but their vocabularies differ in size")
    distinct = list({id(grammar): grammar for grammar in grammars}.values())
    class_of, columns = _common_classes(distinct)
    sizes = [grammar.allowed.shape[0] for grammar in distinct]
    offsets = [sum(sizes[:index]) for index in range(len(sizes))]
    place = {id(grammar): offset for grammar, offset in zip(distinct, offsets, strict=True)}
    parts = list(zip(distinct, columns, offsets, strict=True))
    names = (" or ".join(dict.fromkeys(kinds)) for kinds in zip(*map(_names, distinct, columns), strict=True))
    stacked = Grammar(
        class_of=class_of,
        allowed=torch.cat([grammar.allowed[:, column] for grammar, column, _ in parts]),
        next_state=torch.cat([grammar.next_state[:, column] + offset for grammar, column, offset in parts]),
        codes_next=torch.cat([grammar.codes_next for grammar in distinct]),
        done=torch.cat([grammar.done for grammar in distinct]),
        steps_left=torch.cat([grammar.steps_left for grammar in distinct]),
        start=distinct[0].start,
        refused=distinct[0].refused,
        class_names=tuple(names),
    )
    starts = [place[id(grammar)] + grammar.start for grammar in grammars]
    return stacked, torch.tensor(starts, dtype=torch.long, device=class_of.device)


def header_text(size: tuple[int, int]) -> str:
    """Spell the header of a grid of the layout `rows`.

    >>> header_text((90, 60))
    '90*60'
    """
    rows, columns = size
    return f"{rows}*{columns}"


def spell_sizes(sizes: Sequence[tuple[int, int]], *, by: str = "x", most: int = 8) -> str:
    """List grids for a message, the first ones where there are many.

    >>> spell_sizes([(90, 60), (60, 90), (75, 75)], most=2)
    '90x60, 60x90 and 1 more'
    """
    listed = ", ".join(by.join(map(str, size)) for size in sizes[:most])
    return listed if len(sizes) <= most else f"{listed} and {len(sizes) - most} more"


def _classes(
    vocabulary: Vocabulary, headers: Iterable[Sequence[int]], text_tokenizer: TextTokenizer | None
) -> tuple[Tensor, tuple[str, ...]]:
    """Partition the ids by what they may stand for; an id of a header is text with a class of its own."""
    class_of = torch.zeros(vocabulary.size, dtype=torch.long)
    text = range(vocabulary.size) if text_tokenizer is None else text_tokenizer.text_ids
    class_of[torch.tensor([index for index in text if index < vocabulary.size], dtype=torch.long)] = 1
    for modality in vocabulary.modalities:
        class_of[vocabulary.table(modality)] = 2 if modality == "image" else 0
    class_of[torch.tensor(list(vocabulary.specials.values()), dtype=torch.long)] = 0
    names = ["other", "text", "code"]
    for index in sorted(set(itertools.chain.from_iterable(headers))):
        if index >= vocabulary.size or class_of[index] != 1:
            raise ValueError(f"a header must be text, but its id {index} is none; tokenizer and vocabulary do not fit")
        class_of[index] = len(names)
        names.append(f"text {index}")
    for name in STRUCTURE:
        if vocabulary.has_special(name):
            class_of[vocabulary.special(name)] = len(names)
            names.append(name)
    return class_of, tuple(names)


def _common_classes(grammars: Sequence[Grammar]) -> tuple[Tensor, list[Tensor]]:
    """Partition the ids so finely that each grammar's classes survive; give these by common class."""
    class_of = grammars[0].class_of
    for grammar in grammars[1:]:
        if grammar.class_of is not class_of and not torch.equal(grammar.class_of, class_of):
            pairs = class_of * len(grammar.class_names) + grammar.class_of
            class_of = torch.unique(pairs, return_inverse=True)[1]
    count = int(class_of.max()) + 1
    columns = []
    for grammar in grammars:
        column = torch.zeros(count, dtype=torch.long, device=class_of.device)
        column[class_of] = grammar.class_of
        columns.append(column)
    return class_of, columns


def _names(grammar: Grammar, column: Tensor) -> list[str]:
    return [grammar.class_names[index] for index in column.tolist()]


def _first_of(sizes: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    """Give as many of the first grids as `MAX_STATES` allows, at least one; grids of one width share states."""
    tallest: dict[int, int] = {}
    states = 0
    for number, (rows, columns) in enumerate(sizes):
        states += max(rows - tallest.get(columns, 0), 0) * (columns + 1)
        if number and states > MAX_STATES:
            return sizes[:number]
        tallest[columns] = max(rows, tallest.get(columns, 0))
    return sizes


class _Builder:
    """Collect states and edges; the long blocks of a picture are written as whole slices."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        layout: PictureLayout,
        headers: dict[tuple[int, int], list[int]],
        text_tokenizer: TextTokenizer | None,
    ) -> None:
        self.layout, self.headers = layout, headers
        self.entry: dict[tuple[int, int], int] = {}  # the state before the first code of a grid
        self.class_of, self.names = _classes(vocabulary, headers.values(), text_tokenizer)
        self.index = {name: index for index, name in enumerate(self.names)}
        self.steps: list[int] = []
        self.finals: list[int] = []
        self.edges: list[tuple[int, int, int]] = []
        self.blocks: list[tuple[Tensor, Tensor, Tensor]] = []  # many edges at once: states, class, next states
        self.refused = self.state(steps_left=0)

    def state(self, *, steps_left: int, done: bool = False) -> int:
        if done:
            self.finals.append(len(self.steps))
        self.steps.append(min(steps_left, UNBOUNDED))
        return len(self.steps) - 1

    def kind(self, name: str) -> int:
        if name not in self.index:
            raise ValueError(f"a grammar of this layout needs the special {name!r}, which the vocabulary lacks")
        return self.index[name]

    def edge(self, state: int, name: str, target: int) -> None:
        self.edges.append((state, self.kind(name), target))

    def text_from(self, state: int) -> None:
        for name in self.names:
            if name == "text" or name.startswith("text "):
                self.edge(state, name, state)

    def picture(self, sizes: Sequence[tuple[int, int]], *, then: int) -> int:
        """Add all grids of `sizes` and what frames them; give the state behind BOI."""
        after = self.steps[then]
        eoi = self.state(steps_left=1 + after)
        self.edge(eoi, "eoi", then)
        if self.layout.kind == "fixed":
            rows, columns = sizes[0]
            return self._chain(1, rows * columns, eoi, row_end=None)
        eof = self.state(steps_left=2 + after)
        self.edge(eof, "eof", eoi)
        for columns in sorted({columns for _, columns in sizes}):
            tallest = max(rows for rows, other in sizes if other == columns)
            first = self._chain(tallest, columns, eof, row_end="eol")
            for rows in (rows for rows, other in sizes if other == columns):  # a lower grid enters further down
                self.entry[rows, columns] = first + (tallest - rows) * (columns + 1)
        return self._header(sizes)

    def _chain(self, rows: int, columns: int, then: int, *, row_end: str | None) -> int:
        """Add the states of `rows` rows in the order in which they are passed; give the first."""
        width = columns + (row_end is not None)
        first, count = len(self.steps), rows * width
        after = self.steps[then]
        self.steps += [min(after + count - step, UNBOUNDED) for step in range(count)]
        states = torch.arange(first, first + count)
        kinds = torch.full((rows, width), self.kind("code"))
        if row_end is not None:
            kinds[:, -1] = self.kind(row_end)
        targets = states + 1
        targets[-1] = then
        self.blocks.append((states, kinds.flatten(), targets))
        return first

    def _header(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Add a tree of all headers; give its root."""
        root = self.state(steps_left=0)
        children: dict[tuple[int, int], int] = {}
        for size in sizes:
            path, entry = [root], self.entry[size]
            for token in self.headers[size]:
                if (path[-1], token) not in children:
                    children[path[-1], token] = self.state(steps_left=0)
                    self.edge(path[-1], f"text {token}", children[path[-1], token])
                path.append(children[path[-1], token])
            self.edge(path[-1], "img", entry)
            for back, state in enumerate(reversed(path)):
                self.steps[state] = max(self.steps[state], min(self.steps[entry] + 1 + back, UNBOUNDED))
        return root

    def grammar(self, start: int, done: int) -> Grammar:
        count = len(self.steps)
        allowed = torch.zeros(count, len(self.names), dtype=torch.bool)
        next_state = torch.full((count, len(self.names)), self.refused)
        single = torch.tensor(self.edges).T
        for states, kinds, targets in [(single[0], single[1], single[2]), *self.blocks]:
            allowed[states, kinds] = True
            next_state[states, kinds] = targets
        next_state[done] = done
        code = self.kind("code")
        finals = torch.zeros(count, dtype=torch.bool)
        finals[self.finals] = True
        return Grammar(
            class_of=self.class_of,
            allowed=allowed,
            next_state=next_state,
            codes_next=allowed[:, code] & (allowed.sum(1) == 1),
            done=finals,
            steps_left=torch.tensor(self.steps),
            start=start,
            refused=self.refused,
            class_names=self.names,
        )
