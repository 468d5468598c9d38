from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anymodal.data.coding import Coding
from anymodal.data.config import DataConfig
from anymodal.data.index import ShardIndex
from anymodal.data.opening import Part, open_shards, parts_of
from anymodal.data.recoding import Recoding, recode
from anymodal.data.shards import Sample, write_shards
from anymodal.tokens.image import ImageTokenizer


def test_codes_come_from_where_the_configuration_says(toy: Any, tmp_path: Path) -> None:
    tokenizer = ImageTokenizer.from_pretrained(toy.image_tokenizer)
    coding = Coding(tokenizer=tokenizer, size=16)
    recode(ShardIndex.open(toy.plain), range(2), Recoding(coding=coding, out=tmp_path, form="records"))
    data = DataConfig(train=toy.plain, codes=str(tmp_path))
    index = open_shards(data, data.train, fingerprint=tokenizer.fingerprint)
    assert len(index) == 24
    assert list(index.read(0).codes) == [f"codes.{tokenizer.fingerprint}.npy"]
    assert open_shards(data, data.train).read(0).codes == {}, "nobody asked for codes"
    assert open_shards(replace(data, codes=""), data.train, fingerprint="f00d").read(0).codes == {}
    with pytest.raises(ValueError, match="must hold codes of f00d"):
        open_shards(data, data.train, fingerprint="f00d")
    assert len(open_shards(data, data.train, needs=("picture",))) == 24


def test_patterns_are_parts_with_their_ratios(tmp_path: Path) -> None:
    for name, count in (("a", 5), ("b", 3)):
        samples = [Sample(f"{name}{i}", {"txt": b"words"}) for i in range(count)]
        write_shards(samples, str(tmp_path / name / "%06d.tar"), samples_per_shard=2)
    both = f"{tmp_path / 'a'}::{tmp_path / 'b'}/*.tar"
    data = DataConfig(train=both, ratios=(1.0, 3.0))
    index = open_shards(data, data.train)
    assert parts_of(data, index) == (Part(0, (2, 2, 1), 1.0), Part(5, (2, 1), 3.0))
    assert index.read(5).key == "b0"
    assert parts_of(replace(data, ratios=()), index) == (Part(0, (2, 2, 1, 2, 1)),)
