"""The Jinja template against the encoder: the same conversation, the same ids."""

from typing import Any

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from anymodal.published.chat import jinja_of
from anymodal.tokens.config import ChatTemplate, PictureLayout
from anymodal.tokens.document import DocumentEncoder, Look, Turn
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary

TEXT = TextTokenizer.learn(["a red apple. What is this? USER ASSISTANT"], vocab_size=300)
VOCABULARY = Vocabulary.build(text_size=300, specials=TEXT.specials, codebook_size=4)
TEMPLATES = {
    "ours": ChatTemplate(),
    "janus": ChatTemplate(
        user=(("<user>", ": "), ("\n\n",)), assistant=(("<assistant>", ":"), ("<eos>",)), before_answer=" ",
        beside_look="\n", system=("Help \"all\" of them.\n\n",),
    ),
    "emu3": ChatTemplate(
        user=(("USER: ",), (" ",)), assistant=(("ASSISTANT:",), ("<eos>",)), before_answer=" ", answered=(" ",),
        system=("You are helpful. ",),
    ),
    "chameleon": ChatTemplate(user=((), ("<eol>",)), assistant=((), ("<eos>",))),
}  # fmt: skip
PICTURE = Look(torch.zeros(3, 8, 8))
TURNS = [
    Turn("user", (PICTURE, "What is this?")),
    Turn("assistant", ("a red apple",)),
    Turn("user", ("And these?", PICTURE, "Say {{ it }}.")),
]


def message(turn: Turn) -> dict[str, Any]:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.parts]
    return {"role": turn.role, "content": parts}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("open_turn", [True, False])
def test_the_same_ids(name: str, open_turn: bool) -> None:
    template = TEMPLATES[name]
    encoder = DocumentEncoder(
        text_tokenizer=TEXT, vocabulary=VOCABULARY, layout=PictureLayout(), template=template, look_tokens=2
    )
    turns = TURNS if open_turn else [*TURNS, Turn("assistant", ("two",))]
    jinja = jinja_of(template, lambda role: TEXT.piece(VOCABULARY.special(role)), "<boi><look><look><eoi>")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers has it
    text = environment.from_string(jinja).render(
        messages=[message(turn) for turn in turns], add_generation_prompt=open_turn
    )
    theirs = Tokenizer.from_str(TEXT._tokenizer.to_str())  # with control tokens read as such
    theirs.encode_special_tokens = False
    assert (
        theirs.encode(text, add_special_tokens=False).ids == encoder.encode(turns, complete=not open_turn).ids.tolist()
    )


def test_plain_strings_are_messages_too() -> None:
    jinja = jinja_of(TEMPLATES["janus"], lambda role: f"[{role}]", "[look]")
    environment = ImmutableSandboxedEnvironment()
    text = environment.from_string(jinja).render(messages=[{"role": "assistant", "content": "yes"}])
    assert text == '[bos]Help "all" of them.\n\n[assistant]: yes[eos]'
