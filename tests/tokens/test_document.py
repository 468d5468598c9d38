from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anymodal.tokens.config import SPECIALS, ChatTemplate, PictureLayout
from anymodal.tokens.document import Codes, DocumentEncoder, Draw, Look, Part, Say, TokenSequence, Turn, as_turns
from anymodal.tokens.grammar import compile_grammar
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary

TOKENIZER = TextTokenizer.learn(["a red apple", "2*3"], vocab_size=275)
VOCABULARY = Vocabulary(
    size=400,
    specials=dict(zip(SPECIALS, range(11), strict=True)),
    tables={"image": [399, *range(300, 310)]},
)
PAD, BOS, EOS, USER, ASSISTANT, BOI, EOI, IMG, EOL, EOF, LOOK = range(11)
FIXED = PictureLayout(sizes=((1, 2),))
ROWS = PictureLayout(kind="rows", sizes=((2, 3), (3, 2)))
PIXELS = torch.zeros(3, 4, 4)
CODES = torch.tensor([[0, 5]])
GRID = [BOI, 399, 304, EOI]


def encoder(
    *, layout: PictureLayout = FIXED, template: ChatTemplate | None = None, look_tokens: int | None = None
) -> DocumentEncoder:
    return DocumentEncoder(
        text_tokenizer=TOKENIZER,
        vocabulary=VOCABULARY,
        layout=layout,
        template=template or ChatTemplate(),
        look_tokens=look_tokens,
    )


def text(string: str) -> list[int]:
    return TOKENIZER.encode(string)


def parts(sequence: TokenSequence) -> tuple[list[int], list[int]]:
    """Give all ids, and those that carry loss."""
    assert sequence.ids.dtype == torch.int64
    assert sequence.ids.shape == sequence.loss.shape
    return sequence.ids.tolist(), sequence.ids[sequence.loss].tolist()


def test_a_caption_and_a_picture_to_draw() -> None:
    ids, targets = parts(encoder().encode(["a red", Draw(CODES)]))
    assert ids == [BOS, USER, *text("a red"), ASSISTANT, *GRID, EOS]
    assert targets == [*GRID, EOS]


def test_a_question_about_a_picture_reads_it_as_codes_or_as_features() -> None:
    ids, targets = parts(encoder().encode([Look(CODES), "What?", " a dog"]))
    assert ids == [BOS, USER, *GRID, *text("What?"), ASSISTANT, *text(" a dog"), EOS]
    assert targets == [*text(" a dog"), EOS]
    sequence = encoder(look_tokens=3).encode(["See", Look(PIXELS), Look(PIXELS + 1), "What?", Say(" a dog")])
    ids, targets = parts(sequence)
    looked = [BOI, LOOK, LOOK, LOOK, EOI]
    assert ids == [BOS, USER, *text("See"), *looked, *looked, *text("What?"), ASSISTANT, *text(" a dog"), EOS]
    assert targets == [*text(" a dog"), EOS]
    assert [ids[start - 1 : start + 4] for start, _ in sequence.looks] == [looked, looked]
    assert [float(pixels.max()) for _, pixels in sequence.looks] == [0, 1]


def test_plain_text_is_a_target_from_its_first_word() -> None:
    ids, targets = parts(encoder().encode("a red apple"))
    assert ids == [BOS, *text("a red apple"), EOS]
    assert targets == ids[1:]
    bare = encoder(template=ChatTemplate(begin=())).encode(["a red apple"])
    assert bare.loss.tolist() == [False] + [True] * (len(bare.ids) - 1)


def test_rows_are_framed_as_in_emu3() -> None:
    codes = torch.tensor([[1, 2, 3], [4, 5, 6]])
    ids, targets = parts(encoder(layout=ROWS).encode([Draw(codes)]))
    block = [BOI, *text("2*3"), IMG, 300, 301, 302, EOL, 303, 304, 305, EOL, EOF, EOI]
    assert ids == [BOS, USER, ASSISTANT, *block, EOS]
    assert targets == [*block, EOS]


def test_turns_alternate_freely_and_only_answers_are_targets() -> None:
    turns = [
        Turn("user", ("a red", " apple")),
        Turn("assistant", (" Here", Draw(CODES), Codes(CODES), " it is")),
        Turn("user", (Codes(CODES), Say("again"))),
        Turn("assistant", (" no",)),
    ]
    ids, targets = parts(encoder().encode(turns))
    first = [USER, *text("a red apple"), ASSISTANT, *text(" Here"), *GRID, *GRID, *text(" it is"), EOS]
    assert ids == [BOS, *first, USER, *GRID, *text("again"), ASSISTANT, *text(" no"), EOS]
    assert targets == [*text(" Here"), *GRID, *text(" it is"), EOS, *text("again"), *text(" no"), EOS]


def test_prompts_end_in_an_open_turn() -> None:
    assert parts(encoder().encode(["What?"], complete=False))[0] == [BOS, USER, *text("What?"), ASSISTANT]
    talk = [Turn("user", ("Hi",)), Turn("assistant", ("Yes",)), Turn("user", ("Draw",))]
    closed = [BOS, USER, *text("Hi"), ASSISTANT, *text("Yes"), EOS, USER, *text("Draw"), ASSISTANT]
    assert parts(encoder().encode(talk, complete=False))[0] == closed
    assert parts(encoder().encode(talk[:2], complete=False))[0] == closed[: closed.index(EOS)]
    assert parts(encoder().prompt_image(["a dog"]))[0] == [BOS, USER, *text("a dog"), ASSISTANT, BOI]
    assert parts(encoder(layout=ROWS).prompt_image([], size=(3, 2)))[0] == [
        BOS,
        USER,
        ASSISTANT,
        BOI,
        *text("3*2"),
        IMG,
    ]


@pytest.mark.parametrize("layout", [FIXED, ROWS])
def test_grammar_takes_over_where_the_prompt_stops(layout: PictureLayout) -> None:
    for size in (None, layout.sizes[0]):
        grammar = compile_grammar(VOCABULARY, layout, "image", text_tokenizer=TOKENIZER, size=size)
        prompt = encoder(layout=layout).prompt_image(["a dog"], size=size)
        codes = torch.ones(layout.sizes[0], dtype=torch.long)
        whole = encoder(layout=layout).encode(["a dog", Draw(codes)])
        assert torch.equal(whole.ids[: len(prompt.ids)], prompt.ids)
        answer = whole.ids[len(prompt.ids) : -1]
        assert grammar.done[grammar.check(answer)]
        drawn = encoder(layout=layout).decode(answer)[0]
        assert isinstance(drawn, Codes)
        assert isinstance(drawn.picture, torch.Tensor)
        assert torch.equal(drawn.picture, codes)


def test_literal_template_text_joins_the_text_beside_it() -> None:
    template = ChatTemplate(user=(("User: ",), ("\n",)), assistant=(("<assistant>", ":"), ("<eos>",)))
    ids, targets = parts(encoder(template=template).encode(["a red apple", Say(" yes")]))
    assert ids == [BOS, *text("User: a red apple\n"), ASSISTANT, *text(":"), *text(" yes"), EOS]
    assert targets == [*text(" yes"), EOS]


def test_a_drawing_may_be_bare_and_an_answer_closed_otherwise_before_another_turn() -> None:
    writer = encoder(template=ChatTemplate(answered=(" ",), drawing="bare"))
    assert parts(writer.encode(["a red", Draw(CODES)]))[0] == [BOS, *text("a red"), *GRID, EOS]
    assert parts(writer.prompt_image(["a red"]))[0] == [BOS, *text("a red"), BOI]
    talk = [Turn("user", ("Hi",)), Turn("assistant", (" Yes",)), Turn("user", ("a",)), Turn("assistant", (" no",))]
    ids, targets = parts(writer.encode(talk))
    first = [USER, *text("Hi"), ASSISTANT, *text(" Yes"), *text(" ")]
    assert ids == [BOS, *first, USER, *text("a"), ASSISTANT, *text(" no"), EOS]
    assert targets == [*text(" Yes"), *text(" no"), EOS]


@given(st.text() | st.sampled_from(["<boi>", "<image>", "<bos><eos>", "<user>a<assistant>"]))
def test_typed_control_tokens_stay_text(typed: str) -> None:
    sequence = encoder().encode([typed, Draw(CODES)])
    assert [index for index in sequence.ids.tolist() if index < len(SPECIALS)] == [BOS, USER, ASSISTANT, BOI, EOI, EOS]
    assert "".join(part for part in encoder().decode(sequence.ids) if isinstance(part, str)) == typed


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_parts_in_any_order_come_back_in_that_order(order: tuple[int, ...]) -> None:
    choices: list[Part] = [Say(" a dog"), Draw(CODES), Codes(CODES), Look(PIXELS)]
    sequence = encoder(look_tokens=2).encode([choices[index] for index in order])
    back = encoder(look_tokens=2).decode(sequence.ids)
    kinds = [" a dog" if index == 0 else "grid" for index in order if index < 3]
    assert [part if isinstance(part, str) else "grid" for part in back] == kinds
    grid = next(part for part in back if isinstance(part, Codes))
    assert isinstance(grid.picture, torch.Tensor)
    assert grid.picture.tolist() == [[0, 5]]


def test_a_plain_list_is_cut_at_its_first_target() -> None:
    draw, look = Draw(CODES), Look(CODES)
    cut = {
        ("a", draw): (["a"], [draw]),
        (look, "b", Say("c"), draw): ([look, "b"], [Say("c"), draw]),
        (draw,): ([], [draw]),
        (look, "b"): ([look], [Say("b")]),
    }
    for document, (asked, answered) in cut.items():
        turns = as_turns(document, complete=True)
        assert [turn.role for turn in turns if isinstance(turn, Turn)] == ["user", "assistant"]
        assert [list(turn.parts) for turn in turns if isinstance(turn, Turn)] == [asked, answered]
    assert as_turns("a", complete=True) == as_turns([Say("a")], complete=True) == [Say("a")]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "needs a target: .* it holds: nothing"),
        (["a", Look(CODES)], "needs a target: .* it holds: str, Look"),
        (["a", Draw(CODES.T)], "has 1x2 codes, not 2x1"),
        (["a", Draw(PIXELS)], "whole-number codes here, not a tensor of torch.float32"),
        ([Image.new("RGB", (2, 2)), "a"], "whole-number codes here, not Image"),
        (["a", Draw(CODES + 9)], r"must be in \[0, 11\), not 14"),
        (["a\ud800", Draw(CODES)], "lone surrogate"),
    ],
)
def test_documents_that_fit_nothing_are_refused(document: list[str | Draw | Look], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder().encode(document)


def test_other_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"pixels \[3, h, w\] here, not torch.int64 \[1, 2\]"):
        encoder(look_tokens=2).encode([Look(CODES), "What?", "a"])
    with pytest.raises(ValueError, match="no special 'usr'"):
        encoder(template=ChatTemplate(user=(("<usr>",), ())))
    with pytest.raises(ValueError, match="look_tokens must be at least 1"):
        encoder(look_tokens=0)
    with pytest.raises(ValueError, match="has 1x2 codes, not 2x2"):
        encoder().prompt_image(["a"], size=(2, 2))
    with pytest.raises(ValueError, match="1 codes in 0 closed rows form no whole picture"):
        encoder().decode([BOI, 300, EOI])
    grid = [*text("2*3"), IMG, 300, 301, EOL, 302, 303, EOL, 304, 305, EOL, EOF, EOI]
    with pytest.raises(ValueError, match="6 codes in 3 closed rows form no whole picture"):
        encoder(layout=ROWS).decode(grid)
    small = Vocabulary(size=274, specials=VOCABULARY.specials, tables={"image": [273]})
    with pytest.raises(ValueError, match="ids up to 274, but the vocabulary ends at 273"):
        DocumentEncoder(
            text_tokenizer=TOKENIZER, vocabulary=small, layout=FIXED, template=ChatTemplate(), look_tokens=None
        )
