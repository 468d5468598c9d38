import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anymodal.data.records import CodeRecords, read_about, records_path, stage_records


def write(path: Path, samples: list[dict[str, NDArray[Any]]], **about: Any) -> CodeRecords:
    stage_records(samples, about, path).commit()
    return CodeRecords(path)


@settings(deadline=None)
@given(
    shapes=st.lists(st.lists(st.lists(st.integers(1, 5), min_size=2, max_size=3), max_size=3), max_size=6),
    kind=st.sampled_from([np.uint16, np.uint32]),
)
def test_every_sample_comes_back(tmp_path_factory: pytest.TempPathFactory, shapes: Any, kind: Any) -> None:
    random = np.random.default_rng(0)
    top = np.iinfo(kind).max
    samples = [
        {
            f"{i}.codes.f00d.npy": random.integers(top, size=shape, endpoint=True, dtype=kind)
            for i, shape in enumerate(each)
        }
        for each in shapes
    ]
    records = write(tmp_path_factory.mktemp("records") / "0.codes.safetensors", samples)
    assert len(records) == len(samples)
    for row, sample in enumerate(samples):
        found = records.of(row)
        assert list(found) == list(sample)
        for name, codes in sample.items():
            assert found[name].dtype == kind
            assert np.array_equal(found[name], codes)


def test_codes_stay_in_the_file_and_the_same_give_the_same_bytes(tmp_path: Path) -> None:
    samples = [{"codes.f00d.npy": np.full((4, 4), i, dtype=np.uint16)} for i in range(3)]
    one = write(tmp_path / "a.codes.safetensors", samples, size=64, tokenizer="f00d")
    write(tmp_path / "b.codes.safetensors", samples, tokenizer="f00d", size=64)
    assert (tmp_path / "a.codes.safetensors").read_bytes() == (tmp_path / "b.codes.safetensors").read_bytes()
    assert read_about(tmp_path / "a.codes.safetensors") == {"size": 64, "tokenizer": "f00d"}
    assert np.shares_memory(one.of(1)["codes.f00d.npy"], one.codes)
    assert one.codes.nbytes == 3 * 16 * 2


def test_files_are_named_after_their_shards() -> None:
    crc32 = zlib.crc32(b"shard")
    path = records_path(Path("codes"), "some/where/train-000003.tar", crc32, "f00d")
    assert path == Path(f"codes/train-000003.{crc32:08x}.f00d.codes.safetensors")


def test_no_flipped_bit_and_no_cut_goes_unseen(tmp_path: Path) -> None:
    path = tmp_path / "0.codes.safetensors"
    write(path, [{"codes.f00d.npy": np.arange(16, dtype=np.uint16).reshape(4, 4)}], size=64)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in range(header, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="records of codes must be whole"):
            CodeRecords(path)
    for length in (0, 7, header, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="records of codes must be whole"):
            CodeRecords(path)
    with pytest.raises(ValueError, match="must be whole: .*missing"):
        CodeRecords(tmp_path / "missing")
