import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anymodal.tokens.vocabulary import SPECIALS, Vocabulary


def scattered(ids: list[int], codes: int, specials: int) -> Vocabulary:
    names = dict(zip(SPECIALS, ids[codes : codes + specials], strict=False))
    return Vocabulary(size=24, specials=names, tables={"image": ids[:codes]})


anywhere = given(st.permutations(range(24)), st.integers(1, 12), st.integers(0, 11))


@anywhere
def test_codes_and_ids_are_one_to_one_for_any_table(ids: list[int], count: int, specials: int) -> None:
    vocabulary = scattered(ids, count, specials)
    codes = torch.tensor(ids[:6]) % count
    found = vocabulary.to_ids(codes.reshape(2, 3))
    assert found.shape == (2, 3)
    assert found.dtype == torch.int64
    assert found.flatten().tolist() == [ids[code] for code in codes.tolist()]
    assert torch.equal(vocabulary.to_codes(found), codes.reshape(2, 3))
    everything = torch.arange(-1, vocabulary.size + 1)
    assert everything[vocabulary.is_code(everything)].tolist() == sorted(ids[:count])


@anywhere
def test_a_file_gives_the_same_vocabulary_back(ids: list[int], codes: int, specials: int) -> None:
    vocabulary = scattered(ids, codes, specials)
    again = Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert again.fingerprint == vocabulary.fingerprint
    assert again.specials == vocabulary.specials
    assert torch.equal(again.table(), vocabulary.table())


def test_published_layouts_are_data() -> None:
    chameleon = Vocabulary(
        size=65536, specials={"boi": 8197, "eoi": 8196, "eos": 8710}, tables={"image": range(4, 8196)}
    )
    assert chameleon.to_ids(torch.tensor([0, 8191])).tolist() == [4, 8195]
    emu3 = Vocabulary(size=184622, specials={"eol": 151846, "boi": 151852}, tables={"image": range(151854, 184622)})
    assert emu3.num_codes() == 32768
    assert emu3.to_codes(torch.tensor([[151854, 184621]])).tolist() == [[0, 32767]]
    janus = Vocabulary.build(text_size=102400, specials={"eos": 100001}, codebook_size=16384)
    assert janus.size == 118784
    assert janus.to_ids(torch.tensor(1, dtype=torch.int32)).item() == 102401
    assert emu3.to_dict()["tables"] == {"image": [[151854, 32768]]}
    assert len({chameleon.fingerprint, emu3.fingerprint, janus.fingerprint}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"specials": {"boi": 9}, "tables": {}}, r"special 'boi' must have an id in \[0, 8\), not 9"),
        ({"specials": {"boi": 1, "eoi": 1}, "tables": {}}, "id 1 is both special 'boi' and special 'eoi'"),
        ({"specials": {"boi": 3}, "tables": {"image": [2, 3]}}, "id 3 is both special 'boi' and code 1 of 'image'"),
        ({"specials": {}, "tables": {"image": [2, 2]}}, "id 2 is both code 0 of 'image' and code 1 of 'image'"),
        ({"specials": {}, "tables": {"image": [2], "audio": [2]}}, "both code 0 of 'image' and code 0 of 'audio'"),
        ({"specials": {}, "tables": {"image": []}}, "must hold at least one id"),
    ],
)
def test_an_id_has_one_meaning(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary(size=8, **options)


def test_what_is_missing_is_named() -> None:
    vocabulary = Vocabulary(size=8, specials={"boi": 0}, tables={"image": [4, 2]})
    assert vocabulary.has_special("boi")
    assert not vocabulary.has_special("eoi")
    with pytest.raises(ValueError, match="no special 'eoi'; it has: boi"):
        vocabulary.special("eoi")
    with pytest.raises(ValueError, match="no modality 'audio'; it has: image"):
        vocabulary.table("audio")
    with pytest.raises(ValueError, match=r"must be in \[0, 2\), not 2"):
        vocabulary.to_ids(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="id 3 is no code"):
        vocabulary.to_codes(torch.tensor([4, 3]))
    with pytest.raises(ValueError, match=r"\[first id, count\], not \[4\]"):
        Vocabulary.from_dict({"size": 8, "specials": {}, "tables": {"image": [[4]]}})
