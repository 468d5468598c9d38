"""Pickles that someone else made: read only where that is allowed, and then nothing but tensors."""

import _codecs
import os
import pickle
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

Damage = Callable[[Path], Any]
Case = tuple[Damage, str]  # what is done to the folder, and what the error says
Content = Callable[[dict[str, Any], Path], Any]


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def bin_of(folder: Path) -> Path:
    return folder / "pytorch_model.bin"


class Calls:
    """What a pickle turns into a call, and then gives attributes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, **attributes: Any) -> None:
        self.call = (function, arguments, attributes or None)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def instead(make: Damage) -> Damage:
    """Remove the safetensors, then put something in their place."""

    def damage(folder: Path) -> None:
        weights(folder).unlink()
        make(folder)

    return damage


def save(content: Content, **how: Any) -> Damage:
    """Put what is made of the tensors into a pickle, and remove the safetensors."""

    def damage(folder: Path) -> None:
        state = load_file(weights(folder))
        weights(folder).unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its rarer tensors
            torch.save(content(state, folder), bin_of(folder), **how)

    return damage


def with_norm(change: Callable[[Tensor], Any]) -> Damage:
    """Change one tensor."""

    def content(state: dict[str, Any], _: Path) -> dict[str, Any]:
        name = next(name for name in state if name.endswith("norm.weight"))
        return {**state, name: change(state[name])}

    return save(content)


def system(folder: Path) -> Any:
    return Calls(os.system, f"touch {folder.parent}/owned")


def evaluated(folder: Path) -> Any:
    return Calls(eval, f"open('{folder.parent}/owned', 'w')")


def bytes_bomb(_: Path) -> Any:
    return {"a": Calls(bytearray, Calls(bytearray, 2 * 10**9))}


def hex_bomb(_: Path) -> Any:
    found: Any = Calls(_codecs.encode, "a" * 16, "latin1")
    for _time in range(28):
        found = Calls(_codecs.encode, found, "hex")
    return {"a": found}


def endless(_: Path) -> Any:
    found: dict[str, Any] = {}
    found["state_dict"] = found
    return found


def masked(_: Path) -> Any:
    return Calls(OrderedDict, {"a": 1}, items="no function")


def archive(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED, comment: bytes = b"") -> Damage:
    def make(folder: Path) -> None:
        with zipfile.ZipFile(bin_of(folder), "w", compression) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile warns of a name that it has
            file.comment = comment
            for member in members:
                file.writestr(*member, compresslevel=1)

    return instead(make)


def code(make: Callable[[Path], Any]) -> Damage:
    """Write an archive that holds a pickle alone."""
    beside = ("archive/version", b"3\n"), ("archive/byteorder", b"little")
    return lambda folder: archive(("archive/data.pkl", pickle.dumps(make(folder), protocol=2)), *beside)(folder)


def bomb(folder: Path) -> None:
    archive(("archive/data.pkl", bytes(10**9 // 2)), compression=zipfile.ZIP_DEFLATED)(folder)


def nested(folder: Path) -> None:
    save(lambda state, folder: state)(folder)
    inside = bin_of(folder).read_bytes()
    bin_of(folder).unlink()
    weights(folder).touch()
    archive(("archive/data.pkl", inside))(folder)


def claimed(folder: Path) -> None:
    """Let a pickle say that a storage is larger than its bytes."""
    weights(folder).touch()
    torch.save({"a": torch.zeros(4)}, bin_of(folder))
    with zipfile.ZipFile(bin_of(folder)) as file:
        found = {name: file.read(name) for name in file.namelist()}
    name = next(name for name in found if name.endswith("data.pkl"))
    found[name] = found[name].replace(b"K\x04", b"J" + (10**9).to_bytes(4, "little"))
    archive(*found.items())(folder)


def tar(folder: Path) -> None:
    with tarfile.open(bin_of(folder), "w") as file:
        file.add(folder / "config.json", "../owned")


def script(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), bin_of(folder))


def two(folder: Path) -> None:
    for name in ("a.bin", "b.bin"):
        torch.save({}, folder / name)


def listed(folder: Path) -> None:
    save(lambda state, _: state)(folder)
    bin_of(folder).rename(folder.parent / "outside.bin")
    torch.save({}, folder / "pytorch_model-0.bin")
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../outside.bin"}}')


EMPTY = pickle.dumps({}, protocol=2)
PICKLES: dict[str, Case] = {
    "system": (code(system), "it calls posix system"),
    "eval": (code(evaluated), "it calls __builtin__ eval"),
    "eval-in-a-tensor": (with_norm(lambda t: evaluated(Path("/"))), "it calls __builtin__ eval"),
    "bytes-bomb": (code(bytes_bomb), "it calls __builtin__ bytearray"),
    "hex-bomb": (code(hex_bomb), "it calls _codecs encode"),
    "endless": (code(endless), "must hold tensors by their names alone"),
    "masked": (code(masked), "must hold tensors by their names alone"),
    "no-pickle": (archive(("archive/data.pkl", b"\xff\xff")), "holds no pickle"),
    "long-pickle": (archive(("archive/data.pkl", EMPTY * 3_000_000)), "at most 10000000 are read"),
    "nested-zip": (nested, "holds no pickle"),
    "deflated": (bomb, "compressed or overlapping members"),
    "comment": (archive(("archive/data.pkl", EMPTY), comment=b"PK"), "as no torch.save writes"),
    "two-pickles": (archive(("archive/data.pkl", EMPTY), ("archive/DATA.pkl", EMPTY)), "every member once"),
    "two-folders": (archive(("archive/data.pkl", EMPTY), ("other/x", b"")), "every member once"),
    "legacy": (save(lambda s, f: s, _use_new_zipfile_serialization=False), "is no zip file"),
    "tar": (instead(tar), "is no zip file"),
    "renamed-safetensors": (lambda f: weights(f).rename(bin_of(f)), "is no zip file"),
    "script": (instead(script), "as no torch.save writes"),
    "stride-0": (with_norm(lambda t: torch.zeros(1).expand(10**9)), "repeats its bytes"),
    "one-storage": (save(lambda s, f: {str(i): s["lm_head.weight"] for i in range(99)}), "repeat each other"),
    "sparse": (with_norm(lambda t: t.to_sparse()), "it calls torch Size, torch._utils _rebuild_sparse_tensor"),
    "rows": (with_norm(lambda t: torch.zeros(4, 4).to_sparse_csr()), "_rebuild_sparse_tensor"),
    "meta": (with_norm(lambda t: t.to("meta")), "_rebuild_meta_tensor_no_storage"),
    "quantized": (with_norm(lambda t: torch.quantize_per_tensor(t, 1.0, 0, torch.qint8)), "_rebuild_qtensor"),
    "beyond-its-storage": (claimed, "is broken"),
    "number": (with_norm(lambda t: 3), "must hold tensors by their names alone"),
    "list": (save(lambda s, f: list(s.values())), "must hold a dictionary of tensors, got list"),
    "tensor": (save(lambda s, f: torch.zeros(1)), "must hold a dictionary of tensors, got Tensor"),
    "other-names": (save(lambda s, f: {(1, name): each for name, each in s.items()}), "by their names alone"),
    "shape": (with_norm(lambda t: t[:3].clone()), "got [3]"),
    "integers": (with_norm(lambda t: t.long()), "expected a floating point type, got torch.int64"),
    "missing": (save(lambda s, f: {}), "missing tensors"),
    "unknown": (save(lambda s, f: {**s, "x": torch.zeros(1)}), "unknown tensors ['x']"),
    "two": (instead(two), "holds 2 pickles and no index"),
    "parent": (listed, "which is not a file beside it"),
    "pipe": (instead(lambda f: os.mkfifo(bin_of(f))), "is missing"),
}


@pytest.mark.parametrize("folder", ["janus"], indirect=True)
@pytest.mark.parametrize(("damage", "message"), PICKLES.values(), ids=PICKLES)
def test_pickles(refuse: Any, folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    refuse(folder, message, allow_pickle=True)


@pytest.mark.parametrize("name", ["system", "hex-bomb", "stride-0", "legacy"])
def test_pickles_are_not_opened_unasked(refuse: Any, folder: Path, name: str) -> None:
    PICKLES[name][0](folder)
    refuse(folder, "is a pickle, which can run code, and is not read")


@pytest.mark.parametrize("folder", ["janus"], indirect=True)
@pytest.mark.parametrize("force", ["NO_WEIGHTS_ONLY", "WEIGHTS_ONLY", "NO_WEIGHTS_ONLY WEIGHTS_ONLY"])
def test_the_environment_cannot_change_how_pickles_are_read(refuse: Any, load: Any, folder: Path, force: str) -> None:
    environment = {f"TORCH_FORCE_{name}_LOAD": "1" for name in force.split()}
    state = load_file(weights(folder))
    torch.save(state, bin_of(folder))
    weights(folder).unlink()
    if len(environment) > 1:  # torch refuses to choose
        refuse(folder, "is broken", allow_pickle=True, **environment)
    else:
        assert load(folder, allow_pickle=True, **environment).error is None
    weights(folder).touch()
    code(system)(folder)
    refuse(folder, "it calls posix system", allow_pickle=True, **environment)


@pytest.mark.parametrize("folder", ["janus"], indirect=True)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickle_of_tensors_is_read(load: Any, folder: Path, wrapped: bool) -> None:
    save(lambda state, _: {"state_dict": OrderedDict(state), "epoch": 3} if wrapped else state)(folder)
    assert load(folder, allow_pickle=True).error is None
