import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from anymodal.tokens.config import SPECIALS
from anymodal.tokens.text import TextTokenizer

TEXTS = ["a red apple", "a red apple on a blue tile", "two dogs left of three apples, 12*34"] * 3
TOKENIZER = TextTokenizer.learn(TEXTS, vocab_size=300)


@given(st.text() | st.sampled_from([f"<{name}>" for name in SPECIALS]))
@example("<boi><image></s> <pad>")
@example("\x00 \r\n  �\u200b e\u0301 👩‍🚀")
def test_any_text_survives_and_never_becomes_a_special(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert not set(ids) & set(TOKENIZER.specials.values())
    assert set(ids) <= set(TOKENIZER.text_ids)


def test_texts_that_come_again_have_ids_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anymodal.tokens.text._KEPT_TEXTS", 2)
    monkeypatch.setattr(TOKENIZER, "_known", {})
    texts = ["a red apple", "two dogs", "a blue tile", "a red apple", "a red apple" * 40] * 2
    for text in texts:
        ids = TOKENIZER.encode(text)
        assert ids == TOKENIZER._tokenizer.encode(text, add_special_tokens=False).ids
        ids.clear()
        assert len(TOKENIZER._known) <= 2
    assert all(len(text) < 100 for text in TOKENIZER._known)


def test_specials_take_the_first_ids_and_decode_to_nothing() -> None:
    assert TOKENIZER.specials == {name: index for index, name in enumerate(SPECIALS)}
    assert TOKENIZER.decode([5, *TOKENIZER.encode("a dog"), 2]) == "a dog"
    assert TOKENIZER.text_ids == tuple(range(11, 300))
    assert TOKENIZER.vocab_size == 300
    assert TOKENIZER.piece(5) == "<boi>"


def test_merges_follow_byte_pair_encoding() -> None:
    # Sennrich et al., arXiv:1508.07909: the commonest pair is merged first, here "ab", then "ab" + "c"
    tokenizer = TextTokenizer.learn(["abc ab", "abc x"], vocab_size=256 + 11 + 2)
    assert [len(tokenizer.encode(text)) for text in ("a", "ab", "abc", "abcd", "bc")] == [1, 1, 1, 2, 2]
    assert tokenizer.encode("abc") == [268]
    assert len(TextTokenizer.learn([], vocab_size=267).encode("é")) == 2


def test_learning_is_deterministic_and_a_file_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tokenizer.json"
    TOKENIZER.save(path)
    again = TextTokenizer.load(path)
    assert TextTokenizer.learn(iter(TEXTS), vocab_size=300).fingerprint == again.fingerprint == TOKENIZER.fingerprint
    assert TextTokenizer.learn(TEXTS, vocab_size=299).fingerprint != TOKENIZER.fingerprint
    assert again.encode("<boi> red") == TOKENIZER.encode("<boi> red")
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.json"]


def test_a_published_control_token_stays_text_even_where_its_file_calls_it_ordinary() -> None:
    published = Tokenizer(models.BPE({"<": 0, "x": 1, ">": 2}, []))
    published.add_tokens([AddedToken("<x>", special=False), AddedToken("ü", special=False)])
    tokenizer = TextTokenizer(published)
    assert tokenizer.encode("<x>") == [0, 1, 2]
    assert tokenizer.encode("xü") == [1, 4]
    assert tokenizer.text_ids == (0, 1, 2, 4)


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"character 2 is a lone surrogate \('\\ud800'\)"):
        TOKENIZER.encode("ab\ud800")
    with pytest.raises(ValueError, match="character 0 is a lone surrogate"):
        TextTokenizer.learn(["fine", "\udfff"], vocab_size=300)
    with pytest.raises(ValueError, match="at least 267 .*not 266"):
        TextTokenizer.learn(TEXTS, vocab_size=266)
    with pytest.raises(ValueError, match="there is no file"):
        TextTokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(ValueError, match="no tokenizer that the tokenizers library can read"):
        TextTokenizer.load(tmp_path / "tokenizer.json")
