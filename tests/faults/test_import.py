"""Weights that someone else made: what is broken or hostile is refused, no code is run and no memory is taken."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

Damage = Callable[[Path], Any]
Case = tuple[Damage, str]  # what is done to the folder, and what the error says


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the tensors of a folder."""
    state = load_file(weights(folder))
    edit(state)
    save_file(state, weights(folder))


def norm(state: dict[str, Any]) -> str:
    return next(name for name in state if name.endswith("norm.weight"))


def header(edit: Callable[[dict[str, Any]], Any], more: bytes = b"") -> Damage:
    """Change the header, and nothing behind it but for `more`."""

    def damage(folder: Path) -> None:
        data = weights(folder).read_bytes()
        size = int.from_bytes(data[:8], "little")
        found = json.loads(data[8 : 8 + size])
        edit(found)
        write(json.dumps(found).encode(), data[8 + size :] + more)(folder)

    return damage


def write(text: bytes, data: bytes = b"", size: int | None = None) -> Damage:
    claimed = len(text) if size is None else size
    return lambda folder: _put(weights(folder), claimed.to_bytes(8, "little") + text + data)


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def entry(begin: int, end: int, *shape: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def move(by: int) -> Damage:
    """Shift the bytes of one tensor."""

    def edit(found: dict[str, Any]) -> None:
        begin, end = found[norm(found)]["data_offsets"]
        found[norm(found)]["data_offsets"] = [begin + by, end + by]

    return header(edit)


def retype(dtype: str, size: int) -> Damage:
    return lambda folder: change(folder, lambda s: s.update({norm(s): torch.zeros(size, dtype=getattr(torch, dtype))}))


def doubled(folder: Path) -> None:
    data = weights(folder).read_bytes()
    size = int.from_bytes(data[:8], "little")
    name = norm(json.loads(data[8 : 8 + size]))
    text = data[8 : 8 + size].rstrip()
    again = json.dumps({name: json.loads(text)[name]})[1:]
    write(text[:-1] + b"," + again.encode(), data[8 + size :])(folder)


def instead(make: Damage) -> Damage:
    """Remove the weights, then put something in their place."""

    def damage(folder: Path) -> None:
        weights(folder).unlink()
        make(folder)

    return damage


class Touch:
    """What a pickle turns into a command that leaves a file behind."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder.parent}/owned"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def pickled(folder: Path) -> None:
    torch.save({"a": Touch(folder)}, weights(folder))


MANY = {str(i): entry(4 * i, 4 * i + 4, 1) for i in range(100_001)}
SAFETENSORS: dict[str, Case] = {
    "pickle": (pickled, "the header of"),
    "empty": (write(b"", size=0), "no readable"),
    "short": (lambda f: _put(weights(f), b"\5\0"), "no readable"),
    "cut": (lambda f: os.truncate(weights(f), weights(f).stat().st_size - 10), "no readable"),
    "longer": (lambda f: _put(weights(f), weights(f).read_bytes() + bytes(8)), "no readable"),
    "header-of-1-GB": (write(b"{}", size=10**9), "claims 1000000000 bytes"),
    "header-of-2**64": (write(b"{}", size=2**64 - 1), "claims 18446744073709551615 bytes"),
    "header-beyond-the-end": (write(b"{}", size=4096), "no readable"),
    "header-no-json": (write(b"{abc}"), "no readable"),
    "header-a-list": (write(b"[]"), "no readable"),
    "header-deep": (write(b'{"a":' * 1_000_000), "no readable"),
    "header-of-lists": (write(b'{"a":[' + b"[]," * 3_000_000 + b"1]}"), "no readable"),
    "overlapping": (move(-4), "no readable"),
    "gap": (header(lambda h: h.update(x=entry(10**9, 10**9 + 4, 1))), "no readable"),
    "beyond-the-end": (header(lambda h: h.update(x=entry(0, 10**12, 10**12 // 4))), "no readable"),
    "backwards": (header(lambda h: h.update(x=entry(8, 4, 1))), "no readable"),
    "overflow": (header(lambda h: h.update(x=entry(0, 4, 2**62, 8))), "no readable"),
    "negative": (header(lambda h: h.update(x=entry(0, 4, -1))), "no readable"),
    "100001-tensors": (write(json.dumps(MANY).encode(), bytes(400_004)), "over 100000 tensors"),
    "twice": (doubled, "twice"),
    "missing": (lambda f: change(f, lambda s: s.pop(norm(s))), "missing tensors"),
    "unknown": (lambda f: change(f, lambda s: s.update(x=torch.zeros(1))), "unknown tensors ['x']"),
    "nul-in-a-name": (lambda f: change(f, lambda s: s.update({norm(s) + "\0": s.pop(norm(s))})), "missing tensors"),
    "shape": (retype("float32", 3), "got [3]"),
    "integers": (retype("int64", 32), "expected a floating point type, got torch.int64"),
    "float8": (retype("float8_e4m3fn", 32), "expected a floating point type, got torch.float8_e4m3fn"),
    "complex": (retype("complex64", 32), "expected a floating point type, got torch.complex64"),
    "pipe": (instead(lambda f: os.mkfifo(weights(f))), "is missing"),
    "folder": (instead(lambda f: weights(f).mkdir()), "is missing"),
    "device": (instead(lambda f: weights(f).symlink_to("/dev/zero")), "is missing"),
    "nothing": (instead(lambda f: None), "is missing"),
}


@pytest.mark.parametrize(("damage", "message"), SAFETENSORS.values(), ids=SAFETENSORS)
def test_safetensors(refuse: Any, folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    refuse(folder, message)


def shard(folder: Path) -> dict[str, Any]:
    """Part the weights into two files; return their index."""
    state = load_file(weights(folder))
    weights(folder).unlink()
    placed = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(state)}
    for file in set(placed.values()):
        save_file({name: state[name] for name in state if placed[name] == file}, folder / file)
    return placed


def index(edit: Callable[[dict[str, Any], Path], Any]) -> Damage:
    """Change the index of a folder of two shards."""

    def damage(folder: Path) -> None:
        placed = shard(folder)
        edit(placed, folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))

    return damage


def text(content: str) -> Damage:
    def damage(folder: Path) -> None:
        shard(folder)
        (folder / "model.safetensors.index.json").write_text(content)

    return damage


def elsewhere(name: str) -> Callable[[dict[str, Any], Path], Any]:
    """Move a shard out of the folder and let the index follow."""

    def edit(placed: dict[str, Any], folder: Path) -> None:
        (folder / "model-0.safetensors").rename(folder.parent / "outside.safetensors")
        target = name.format(folder=folder)
        placed.update({key: target for key, file in placed.items() if file == "model-0.safetensors"})

    return edit


def link_out(_: dict[str, Any], folder: Path) -> None:
    (folder / "model-0.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model-0.safetensors").symlink_to(folder.parent / "outside.safetensors")


INDICES: dict[str, Case] = {
    "parent": (index(elsewhere("../outside.safetensors")), "which is not a file beside it"),
    "absolute": (index(elsewhere("{folder}/../outside.safetensors")), "which is not a file beside it"),
    "nul": (index(elsewhere("model-0.safetensors\0")), "which is not a file beside it"),
    "dot": (index(elsewhere(".")), "which is not a file beside it"),
    "link-out": (index(link_out), "is a link that leads out of its folder"),
    "missing-shard": (index(lambda p, f: (f / "model-1.safetensors").unlink()), "model-1.safetensors is missing"),
    "lacking-tensor": (index(lambda p, f: p.update(x="model-1.safetensors")), "which lacks it"),
    "unlisted-tensor": (index(lambda p, f: save_file({"x": torch.zeros(1)}, f / "model-0.safetensors")), "which lacks"),
    "unknown-tensor": (index(lambda p, f: (save_file({"x": torch.zeros(1)}, f / "more.safetensors"),
                                           p.update(x="more.safetensors"))), "unknown tensors ['x']"),
    "pickle": (index(lambda p, f: ((f / "model-0.safetensors").rename(f / "model-0.bin"),
                                   p.update({k: "model-0.bin" for k in p if p[k] == "model-0.safetensors"}))),
     "is a pickle, which can run code"),
    "50-MB": (text('{"weight_map": {"a": "' + "x" * 50_000_000 + '"}}'), "at most 10000000 are read"),
    "deep": (text("[" * 1_000_000), "is no JSON"),
    "no-json": (text("{"), "is no JSON"),
    "list": (text('{"weight_map": ["a"]}'), "must name a file for every tensor"),
    "number": (text('{"weight_map": {"a": 1}}'), "must name a file for every tensor"),
    "100001-tensors": (text(json.dumps({"weight_map": dict.fromkeys(MANY, "a")})), "over 100000 tensors"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), INDICES.values(), ids=INDICES)
def test_index(refuse: Any, folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    refuse(folder, message)


def test_a_folder_of_shards_is_read(load: Any, folder: Path) -> None:
    index(lambda placed, folder: None)(folder)
    assert load(folder).error is None


def test_links_into_the_blobs_of_a_hub_are_followed(load: Any, folder: Path, tmp_path: Path) -> None:
    index(lambda placed, folder: None)(folder)
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123abcd", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.rglob("*.*"))):
        target = snapshot / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / f"{number:040x}")
        target.symlink_to(os.path.relpath(blobs / f"{number:040x}", target.parent))
    assert load(snapshot).error is None


def test_numbers_may_be_none(load: Any, folder: Path) -> None:
    change(folder, lambda state: state[norm(state)].fill_(torch.nan))
    assert load(folder).error is None
