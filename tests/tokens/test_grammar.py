"""The grammar against a slow reference that spells every picture as a template and matches the whole prefix anew."""

import random
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anymodal.tokens.config import SPECIALS, ChatTemplate, PictureLayout
from anymodal.tokens.document import Codes, DocumentEncoder
from anymodal.tokens.grammar import UNBOUNDED, Grammar, compile_grammar, stack_grammars
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary

Want = Literal["text", "image", "any"]
TOKENIZER = TextTokenizer.learn(["a red apple", "2*3", "2*3", "1*2"], vocab_size=272)
CODE = -1
CODES = 5
FIXED = PictureLayout(sizes=((2, 3),))
ROWS = PictureLayout(kind="rows", sizes=((2, 3), (1, 2), (3, 3), (2, 30)))


def scattered(seed: int) -> Vocabulary:
    """Give a vocabulary whose codes and specials lie anywhere outside of the ids of text."""
    free = [*range(11), *range(TOKENIZER.vocab_size, 300)]
    random.Random(seed).shuffle(free)
    specials = dict(zip(SPECIALS, free, strict=False))
    return Vocabulary(size=300, specials=specials, tables={"image": free[11 : 11 + CODES]})


@dataclass
class Reference:
    vocabulary: Vocabulary
    layout: PictureLayout
    want: Want

    def templates(self) -> list[list[int]]:
        eoi = self.vocabulary.special("eoi")
        if self.layout.kind == "fixed":
            return [[CODE] * 6 + [eoi]]
        img, eol, eof = (self.vocabulary.special(name) for name in ("img", "eol", "eof"))
        headers = {size: TOKENIZER.encode(f"{size[0]}*{size[1]}") for size in self.layout.sizes}
        return [[*headers[h, w], img, *([CODE] * w + [eol]) * h, eof, eoi] for h, w in self.layout.sizes]

    def next(self, prefix: list[int]) -> set[int] | None:
        """Give what may follow, or None where the prefix itself is wrong."""
        codes = set(self.vocabulary.table().tolist())
        if self.want == "image":
            following, rest = self.picture(prefix, codes)
            return (None if rest else set()) if rest is not None else following
        text = set(TOKENIZER.text_ids)
        boi, eos = self.vocabulary.special("boi"), self.vocabulary.special("eos")
        while prefix:
            head, prefix = prefix[0], prefix[1:]
            if head == eos:
                return None if prefix else set()
            if head == boi and self.want == "any":
                following, rest = self.picture(prefix, codes)
                if rest is None:
                    return following
                prefix = rest
            elif head not in text:
                return None
        return text | {eos} | ({boi} if self.want == "any" else set())

    def picture(self, prefix: list[int], codes: set[int]) -> tuple[set[int] | None, list[int] | None]:
        following: set[int] = set()
        for template in self.templates():
            length = min(len(template), len(prefix))
            fits = (there in codes if wanted == CODE else there == wanted for wanted, there in zip(template, prefix))  # noqa: B905
            if all(fits):
                if len(prefix) >= len(template):
                    return None, prefix[length:]
                following |= codes if template[length] == CODE else {template[length]}
        return following or None, None

    def whole(self, ids: list[int]) -> bool:
        return self.next(ids) == set()


def compiled(reference: Reference) -> Grammar:
    return compile_grammar(reference.vocabulary, reference.layout, reference.want, text_tokenizer=TOKENIZER)


def whole(grammar: Grammar, ids: list[int]) -> bool:
    try:
        return bool(grammar.done[grammar.check(torch.tensor(ids, dtype=torch.long))])
    except ValueError:
        return False


def walk(grammar: Grammar, rng: random.Random, stop: int, *, longest: int = 400) -> list[int]:
    """Choose allowed ids by chance until nothing may follow; behind 40 ids choose `stop` where it is allowed."""
    state, ids = torch.tensor([grammar.start]), list[int]()
    while not grammar.done[state] and len(ids) < longest:
        choices = grammar.mask(state)[0].nonzero().flatten().tolist()
        structure = [index for index in choices if index in range(11) or index >= TOKENIZER.vocab_size]
        chosen = rng.choice(structure if structure and rng.random() < 0.5 else choices)
        ids.append(stop if len(ids) > 40 and stop in choices else chosen)
        state = grammar.advance(state, torch.tensor(ids[-1:]))
    return ids


def reader(reference: Reference) -> DocumentEncoder:
    return DocumentEncoder(
        text_tokenizer=TOKENIZER,
        vocabulary=reference.vocabulary,
        layout=reference.layout,
        template=ChatTemplate(),
        look_tokens=None,
    )


layouts = st.sampled_from([FIXED, ROWS])
wants = st.sampled_from(["text", "image", "any"])
seeds = st.integers(0, 50)


@settings(max_examples=40, deadline=None)
@given(seeds, layouts, wants, st.randoms(use_true_random=False))
def test_masks_are_those_of_the_reference_on_every_step_of_a_walk(
    seed: int, layout: PictureLayout, want: Want, rng: random.Random
) -> None:
    reference = Reference(scattered(seed), layout, want)
    grammar = compiled(reference)
    ids = walk(grammar, rng, reference.vocabulary.special("eos"))
    state = torch.tensor([grammar.start])
    codes = set(reference.vocabulary.table().tolist())
    for position in range(len(ids) + 1):
        allowed = set(grammar.mask(state)[0].nonzero().flatten().tolist())
        assert allowed == reference.next(ids[:position])
        assert bool(grammar.codes_next[state]) == (bool(allowed) and allowed <= codes)
        assert bool(grammar.done[state]) == (not allowed)
        if position < len(ids):
            state = grammar.advance(state, torch.tensor([ids[position]]))


@settings(max_examples=60, deadline=None)
@given(seeds, layouts, wants, st.randoms(use_true_random=False))
def test_every_walk_is_accepted_and_reads_as_whole_grids(
    seed: int, layout: PictureLayout, want: Want, rng: random.Random
) -> None:
    reference = Reference(scattered(seed), layout, want)
    grammar = compiled(reference)
    ids = walk(grammar, rng, reference.vocabulary.special("eos"))
    assert whole(grammar, ids)
    grids = [part for part in reader(reference).decode(ids) if isinstance(part, Codes)]
    shapes = [tuple(grid.picture.shape) for grid in grids if isinstance(grid.picture, torch.Tensor)]
    assert set(shapes) <= set(reference.layout.sizes)
    starts = ids.count(reference.vocabulary.special("boi")) + (reference.want == "image")
    assert len(shapes) == starts


@settings(max_examples=10, deadline=None)
@given(seeds, layouts, st.randoms(use_true_random=False))
def test_every_one_id_corruption_of_a_finished_picture_is_refused(
    seed: int, layout: PictureLayout, rng: random.Random
) -> None:
    vocabulary = scattered(seed)
    reference = Reference(vocabulary, layout, "image")
    grammar = compiled(reference)
    ids = walk(grammar, rng, stop=-1)
    codes = set(vocabulary.table().tolist())
    others = {*vocabulary.specials.values(), *codes, *ids, *rng.sample(range(vocabulary.size), 10)}
    for position, index in enumerate(ids):
        assert not whole(grammar, ids[:position] + ids[position + 1 :])
        for other in others:
            replaced = [*ids[:position], other, *ids[position + 1 :]]
            harmless = other == index or {other, index} <= codes
            assert whole(grammar, replaced) == harmless
            assert not whole(grammar, [*ids[:position], other, *ids[position:]])
    assert not whole(grammar, [*ids, ids[-1]])


@settings(max_examples=10, deadline=None)
@given(seeds, st.randoms(use_true_random=False))
def test_a_stack_moves_every_row_as_its_own_grammar_does(seed: int, rng: random.Random) -> None:
    vocabulary = scattered(seed)
    grammars = [compiled(Reference(vocabulary, layout, "any")) for layout in (FIXED, ROWS)]
    grammars += [compile_grammar(vocabulary, FIXED, "text"), compile_grammar(vocabulary, FIXED, "image"), grammars[0]]
    stacked, states = stack_grammars(grammars)
    assert stacked.allowed.shape[0] == sum(grammar.allowed.shape[0] for grammar in grammars[:4])
    walks = [walk(grammar, rng, vocabulary.special("eos")) for grammar in grammars]
    own = [torch.tensor([grammar.start]) for grammar in grammars]
    for position in range(50):
        for row, grammar in enumerate(grammars):
            assert torch.equal(stacked.mask(states)[row], grammar.mask(own[row])[0])
            assert torch.equal(stacked.steps_left[states[row]], grammar.steps_left[own[row]][0])
        ids = torch.tensor([ids[position] if position < len(ids) else vocabulary.special("pad") for ids in walks])
        states = stacked.advance(states, ids)
        own = [
            grammar.advance(state, ids[row : row + 1])
            for row, (grammar, state) in enumerate(zip(grammars, own, strict=True))
        ]
        assert torch.equal(
            stacked.done[states], torch.cat([g.done[state] for g, state in zip(grammars, own, strict=True)])
        )


def test_steps_left_counts_the_longest_way_of_emu3() -> None:
    specials = dict(zip(SPECIALS, range(300, 311), strict=True))
    vocabulary = Vocabulary(size=1000, specials=specials, tables={"image": range(400, 1000)})
    layout = PictureLayout(kind="rows", sizes=((90, 90), (64, 64)))
    grammar = compile_grammar(vocabulary, layout, "image", text_tokenizer=TOKENIZER, size=(90, 90))
    assert grammar.steps_left[grammar.start] == 8100 + 90 + 2  # codes, an EOL a row, EOF, EOI
    assert grammar.codes_next[grammar.start]
    free = compile_grammar(vocabulary, layout, "image", text_tokenizer=TOKENIZER)
    assert free.steps_left[free.start] == len(TOKENIZER.encode("90*90")) + 1 + 8192
    talk = compile_grammar(vocabulary, layout, "any", text_tokenizer=TOKENIZER)
    assert talk.steps_left[talk.start] == UNBOUNDED
    assert int(talk.steps_left.max()) == UNBOUNDED
    assert talk.allowed.shape[0] < 90 * 91 + 64 * 65 + 20


def test_a_refused_id_leads_nowhere_and_done_stays_done() -> None:
    vocabulary = scattered(0)
    grammar = compile_grammar(vocabulary, FIXED, "image")
    lost = grammar.advance(torch.tensor([grammar.start]), torch.tensor([vocabulary.special("eos")]))
    assert lost.item() == grammar.refused
    assert not grammar.mask(lost).any()
    assert not grammar.done[lost]
    final = grammar.check(torch.cat([vocabulary.table()[:1].expand(6), torch.tensor([vocabulary.special("eoi")])]))
    assert grammar.done[grammar.advance(torch.tensor([final]), torch.tensor([vocabulary.special("pad")]))]
    middle = grammar.check(vocabulary.table()[:4])
    assert grammar.check(vocabulary.table()[:2], middle) == grammar.check(vocabulary.table()[:5].repeat(2)[:6])


def test_text_without_a_tokenizer_is_what_is_neither_code_nor_special() -> None:
    vocabulary = scattered(1)
    grammar = compile_grammar(vocabulary, FIXED, "text")
    known = {*vocabulary.table().tolist(), *vocabulary.specials.values()} - {vocabulary.special("eos")}
    assert set(grammar.mask(torch.tensor([grammar.start]))[0].nonzero().flatten().tolist()) == set(range(300)) - known


def test_errors_name_position_id_and_what_was_allowed() -> None:
    vocabulary = scattered(2)
    grammar = compile_grammar(vocabulary, FIXED, "image")
    code, eoi = int(vocabulary.table()[0]), vocabulary.special("eoi")
    with pytest.raises(ValueError, match=f"id {eoi} at position 1 is a eoi id, but here may stand only: code"):
        grammar.check(torch.tensor([code, eoi]))
    with pytest.raises(ValueError, match=r"id 300 at position 0 is outside of \[0, 300\)"):
        grammar.check(torch.tensor([300]))
    with pytest.raises(ValueError, match="nothing, the sequence is complete"):
        grammar.check(torch.tensor([*[code] * 6, eoi, eoi]))
    with pytest.raises(ValueError, match="holds pictures of 2x3 codes, not of 9x9"):
        compile_grammar(vocabulary, FIXED, "image", size=(9, 9))
    with pytest.raises(ValueError, match="hand in text_tokenizer"):
        compile_grammar(vocabulary, ROWS, "any")
    with pytest.raises(ValueError, match="needs the special 'eoi'"):
        compile_grammar(Vocabulary(size=9, specials={}, tables={"image": [1]}), FIXED, "image")
    with pytest.raises(ValueError, match="the list is empty"):
        stack_grammars([])
