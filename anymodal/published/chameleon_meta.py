"""Chameleon (arXiv:2405.09818) in the layout of Meta's release: shards by model parallelism, with pictures to draw."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from einops import rearrange, repeat
from jaxtyping import Float
from tokenizers import Tokenizer, processors
from torch import Tensor

from anymodal.model.config import AnyModalConfig, TransformerConfig
from anymodal.model.folder import ModelFolder, Origin
from anymodal.published.chameleon import PLACEHOLDER, ROLES, build, code_table, gather
from anymodal.published.layout import Layout, PublishedFolder, no_memory
from anymodal.published.names import Names, Rule
from anymodal.published.vqgan import read_taming_config, taming_names
from anymodal.tokens.files import read_bytes
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.picture_config import PictureFit
from anymodal.tokens.tensors import TensorFiles
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary
from anymodal.tokens.weights import read_json, write_json

NAME = "chameleon-meta"
KEPT, MAX_TEXT_BYTES = ("text_tokenizer.json", "vqgan.yaml"), 100_000_000
MAX_SEQ_LEN, MAX_YAML_BYTES = 4096, 1_000_000
RESERVED = "<reserved08707>"
"""What becomes the placeholder of a picture in transformers, as in their conversion."""

AXES = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "wo": 1, "w2": 1, "tok_embeddings": 1}
"""Along which axis a tensor was cut into shards; the norms of the residual stream stand whole in every shard."""

DRIFT = 0.05
"""How far the copies of a norm may lie apart: shards are trained alike, but each rounds by itself."""


class Shards(Mapping[str, Tensor]):
    """The tensors of a model that was cut into files, each joined when it is read.

    The norms of queries and keys were trained in every shard apart: they come as a row a shard.

    >>> shards = Shards([{"output.weight": torch.zeros(2, 4)}, {"output.weight": torch.ones(2, 4)}])
    >>> shards["output.weight"].shape
    torch.Size([4, 4])
    """

    def __init__(self, files: Sequence[Mapping[str, Tensor]]) -> None:
        """Take the shards in their order.

        Raises:
            ValueError: they hold different tensors.
        """
        for number, file in enumerate(files):
            if other := sorted(set(file) ^ set(files[0])):
                raise ValueError(f"shards must hold the same tensors, but 0 and {number} differ in {other[:5]}.")
        self.files = files

    def __getitem__(self, name: str) -> Tensor:
        """Return a whole tensor.

        Raises:
            ValueError: the shards do not fit each other.
        """
        pieces = [file[name] for file in self.files]
        if len({piece.shape for piece in pieces}) > 1:
            raise ValueError(f"shards of {name} must have one shape, got {[list(piece.shape) for piece in pieces]}.")
        kind = name.split(".")[-2]
        if kind in ("q_normalization", "k_normalization"):
            return torch.stack(pieces)
        if len(pieces) == 1:
            return pieces[0]
        if kind in AXES:
            return torch.cat(pieces, dim=AXES[kind])
        return _agreed(name, pieces)

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self.files[0])

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self.files[0])


@dataclass(frozen=True)
class Release:
    """The folders of one model within a download: its shards in the order of their numbers, and the tokenizers."""

    model: Path
    shards: tuple[Path, ...]
    tokenizer: Path

    @classmethod
    def find(cls, path: Path) -> "Release":
        """Find the model in a download, which is given as a whole or by the model's own folder.

        Raises:
            ValueError: there is none or more than one, a shard lacks, or the tokenizers are elsewhere.
        """
        places = _models(path)
        if len(places) != 1:
            found = ", ".join(str(place) for place in places) or "none"
            raise ValueError(
                f"{path} must hold the shards of one model, found {found}; give the folder of one of them."
            )
        shards = _shards(places[0])
        if any(number != index for index, (number, _) in enumerate(shards)):
            numbers = [number for number, _ in shards]
            raise ValueError(f"the shards of {places[0]} must be numbered from 0 on without a gap, got {numbers}.")
        near = [folder / "tokenizer" for folder in (path, places[0], places[0].parent.parent)]
        tokenizer = next((folder for folder in near if (folder / "text_tokenizer.json").is_file()), None)
        if tokenizer is None:
            raise ValueError(
                f"{near[-1] / 'text_tokenizer.json'} is missing; download the folder tokenizer beside models."
            )
        return cls(places[0], tuple(file for _, file in shards), tokenizer)

    def params(self) -> dict[str, Any]:
        """Read what the model was trained with: the later of its files hold.

        Raises:
            ValueError: params.json is missing, or says another number of shards than there are.
        """
        params: dict[str, Any] = dict(read_json(self.model / "params.json"))
        consolidated = self.model / "consolidate_params.json"
        last: dict[str, Any] = dict(read_json(consolidated)) if consolidated.is_file() else {}
        count = last.get("model_parallel_size", len(self.shards))
        if count != len(self.shards):
            raise ValueError(
                f"{consolidated} says model_parallel_size {count}, but there are {len(self.shards)} shards; download "
                "the folder again."
            )
        return {**params, **(params.get("model") or {}), **last}


def names(config: TransformerConfig) -> Names:
    """Return the names of the model's tensors, as `Shards` join them; written is a model of one shard."""
    layer, block = "layers.*.", "transformer.blocks.*."
    attention = {"q": config.num_heads, "k": config.num_kv_heads}
    rules = [
        Rule("embedding.weight", "tok_embeddings.weight"),
        Rule("head.weight", "output.weight"),
        Rule("transformer.norm.weight", "norm.weight"),
        Rule(f"{block}attention_norm.weight", f"{layer}attention_norm.weight"),
        Rule(f"{block}feed_forward_norm.weight", f"{layer}ffn_norm.weight"),
        Rule(f"{block}attention.v_proj.weight", f"{layer}attention.wv.weight"),
        Rule(f"{block}attention.o_proj.weight", f"{layer}attention.wo.weight"),
        Rule(f"{block}feed_forward.gate_proj.weight", f"{layer}feed_forward.w1.weight"),
        Rule(f"{block}feed_forward.down_proj.weight", f"{layer}feed_forward.w2.weight"),
        Rule(f"{block}feed_forward.up_proj.weight", f"{layer}feed_forward.w3.weight"),
    ]
    for each, heads in attention.items():
        halve, pair = partial(halves, heads=heads), partial(pairs, heads=heads)
        rules.append(Rule(f"{block}attention.{each}_proj.weight", f"{layer}attention.w{each}.weight", halve, pair))
        spread = partial(norm_of_heads, heads=heads)
        norm = f"{layer}attention.{each}_normalization.*"
        rules.append(Rule(f"{block}attention.{each}_norm.*", norm, spread, norm_of_shard))
    return Names(rules, ignored=("rope.freqs",))


def halves(weight: Float[Tensor, "rows d"], *, heads: int) -> Float[Tensor, "rows d"]:
    """Bring the rows of every head from pairs that are rotated against each other, side by side, to two halves."""
    return rearrange(weight, "(heads k two) d -> (heads two k) d", heads=heads, two=2)


def pairs(weight: Float[Tensor, "rows d"], *, heads: int) -> Float[Tensor, "rows d"]:
    """Bring the rows of every head back from two halves to pairs."""
    return rearrange(weight, "(heads two k) d -> (heads k two) d", heads=heads, two=2)


def norm_of_heads(weight: Float[Tensor, "shards head_dim"], *, heads: int) -> Float[Tensor, "heads head_dim"]:
    """Give every head the norm of its shard, with its pairs as two halves."""
    return repeat(weight, "shards (k two) -> (shards each) (two k)", each=heads // len(weight), two=2)


def norm_of_shard(weight: Float[Tensor, "heads head_dim"]) -> Float[Tensor, " head_dim"]:
    """Return the norm that all heads of a whole model share, with its halves as pairs.

    Raises:
        ValueError: heads differ, as those of several shards do.
    """
    if not bool((weight == weight[:1]).all()):
        raise ValueError("one shard has one norm for all heads, this model has several; save it as 'chameleon'.")
    return rearrange(weight[0], "(two k) -> (k two)", two=2)


def read_config(params: Mapping[str, Any], tensors: Shards) -> AnyModalConfig:
    """Read the shape of the model from its parameters, and what these only imply from its tensors.

    Raises:
        ValueError: a parameter or tensor is missing, or heads do not divide; both numbers are named.
    """
    first = "layers.0.feed_forward.w1.weight"
    lacking = [name for name in ("dim", "n_layers", "n_heads") if name not in params]
    lacking += [name for name in (first, "output.weight") if name not in tensors]
    if lacking:
        raise ValueError(f"params.json and shards lack {', '.join(lacking)}; download the folder again.")
    dim, heads, shards = int(params["dim"]), int(params["n_heads"]), len(tensors.files)
    kv_heads = int(params.get("n_kv_heads") or heads)
    if dim % heads:
        raise ValueError(f"n_heads must divide dim, got {heads} and {dim}; the folder is broken.")
    if heads % shards or kv_heads % shards:
        raise ValueError(
            f"every shard must hold whole heads, got {shards} shards of {heads} heads and {kv_heads} of keys; the "
            "folder is broken."
        )
    transformer = TransformerConfig(
        dim=dim,
        depth=int(params["n_layers"]),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim // heads,
        hidden_dim=tensors[first].shape[0],
        norm_eps=float(params.get("norm_eps", 1e-5)),
        norm_position="swin" if params.get("swin_norm") else "pre",
        qk_norm="layer" if "layers.0.attention.q_normalization.weight" in tensors else "none",
        rope_theta=float(params.get("rope_theta") or 10000.0),
        max_seq_len=MAX_SEQ_LEN,
    )
    return AnyModalConfig(transformer=transformer, heads="shared")


def load(folder: PublishedFolder) -> ModelFolder:
    """Read a download of Meta's release.

    Raises:
        ValueError: a file is missing, a pickle is not allowed, or the parts do not fit each other.
    """
    release = Release.find(folder.path)
    params = release.params()
    tensors = Shards([TensorFiles.of_file(path, allow_pickle=folder.allow_pickle) for path in release.shards])
    config = read_config(params, tensors)
    image, side = load_image_tokenizer(release.tokenizer, allow_pickle=folder.allow_pickle)
    text, vocabulary_map = load_text_tokenizer(release.tokenizer / "text_tokenizer.json")
    vocabulary = Vocabulary(
        size=tensors["output.weight"].shape[0],
        specials=folder.roles(text, ROLES),
        tables={"image": code_table(vocabulary_map, image.codebook_size)},
    )
    return gather(
        build(str(release.model), config, vocabulary, tensors, names(config.transformer)),
        text=text,
        image=image,
        grid=(side // image.config.down_sampling, side // image.config.down_sampling),
        origin=Origin(NAME, params, {name: read_bytes(release.tokenizer / name, MAX_TEXT_BYTES) for name in KEPT}),
    )


def save(parts: ModelFolder, folder: Path) -> None:
    """Write a folder that Meta's code reads, in one shard.

    Raises:
        ValueError: the model did not come in this layout, or its heads have norms of several shards.
    """
    if parts.origin is None or parts.origin.layout != NAME:
        raise ValueError(f"only models that came in it are written in the layout {NAME!r}; take 'chameleon'.")
    model, tokenizer = folder / "models" / "model", folder / "tokenizer"
    for place in (model, tokenizer):
        place.mkdir(parents=True)
    torch.save(names(parts.model.config.transformer).write(parts.model.state_dict()), model / "consolidated.pth")
    write_json(model / "params.json", {"model": parts.origin.config, "model_parallel_size": 1})
    write_json(model / "consolidate_params.json", {"model_parallel_size": 1})
    image = parts.image_tokenizer
    torch.save({"state_dict": taming_names(image.config).write(image.state_dict())}, tokenizer / "vqgan.ckpt")
    for name in KEPT:
        (tokenizer / name).write_bytes(parts.origin.files[name])


def load_image_tokenizer(folder: Path, *, allow_pickle: bool) -> tuple[ImageTokenizer, int]:
    """Read the whole VQGAN, and how many pixels its pictures have on a side.

    Raises:
        ValueError: a file is missing or broken, a pickle is not allowed, or the down-sampling does not divide.
    """
    described = folder / "vqgan.yaml"
    text = read_bytes(described, MAX_YAML_BYTES)
    try:
        params = yaml.safe_load(text)["model"]["params"]
        side = int(params["ddconfig"]["resolution"])
    except (yaml.YAMLError, RecursionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{described} must hold model.params with a ddconfig ({error!r}); download it again."
        ) from error
    config = replace(read_taming_config(params), pictures=PictureFit(kind="resize-crop", resample="lanczos"))
    if side % config.down_sampling:
        raise ValueError(
            f"pictures have {side} pixels a side, which {config.down_sampling}, the down-sampling of the image "
            "tokenizer, does not divide; the folder is broken."
        )
    converted = folder / "vqgan.safetensors"
    file = converted if converted.is_file() else folder / "vqgan.ckpt"
    with no_memory():
        image = ImageTokenizer(config)
    taming_names(config).read(TensorFiles.of_file(file, allow_pickle=allow_pickle), image, str(file))
    return image, side


def load_text_tokenizer(path: Path) -> tuple[TextTokenizer, dict[str, Any]]:
    """Read the text tokenizer and the id of every token.

    One reserved token becomes the placeholder of pictures, and BOS is put before texts, as transformers has them.

    Raises:
        ValueError: the file is no tokenizer.
    """
    data: dict[str, Any] = dict(read_json(path))
    try:
        vocabulary_map: dict[str, Any] = data["model"]["vocab"]
        added: list[dict[str, Any]] = data["added_tokens"]
        if PLACEHOLDER not in {*vocabulary_map, *(token["content"] for token in added)}:
            data["model"]["vocab"] = {_renamed(name): index for name, index in vocabulary_map.items()}
            data["added_tokens"] = [{**token, "content": _renamed(token["content"])} for token in added]
        tokenizer = Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # the tokenizers library raises the bare class
        raise ValueError(f"{path} is no tokenizer that the tokenizers library can read: {error}") from error
    bos = ROLES["bos"][-1]
    if (index := tokenizer.token_to_id(bos)) is not None:
        single, pair = f"{bos} $A", f"{bos} $A {bos} $B"
        tokenizer.post_processor = processors.TemplateProcessing(single, pair, [(bos, index)])
    return TextTokenizer(tokenizer), tokenizer.get_vocab()


def _renamed(token: str) -> str:
    return PLACEHOLDER if token == RESERVED else token


def _agreed(name: str, pieces: Sequence[Tensor]) -> Tensor:
    """Return the mean of copies that are equal but for rounding."""
    apart = max(float((piece.float() - pieces[0].float()).abs().max()) for piece in pieces)
    if not apart:
        return pieces[0]
    if not apart <= DRIFT:
        raise ValueError(f"{name} must be equal in all shards, but they lie {apart:.3g} apart; download them again.")
    return torch.stack([piece.float() for piece in pieces]).mean(0).to(pieces[0].dtype)


def _models(path: Path) -> list[Path]:
    """Return the folders with shards: the one that is given, else those below its `models`."""
    return [path] if _shards(path) else [each for each in sorted((path / "models").glob("*")) if _shards(each)]


def _shards(folder: Path) -> list[tuple[int, Path]]:
    """Return the shards of a folder by number; those that were converted to safetensors go before pickles."""
    for kind in ("safetensors", "pth"):
        found = [(re.fullmatch(rf"consolidated(?:\.(\d+))?\.{kind}", path.name), path) for path in folder.glob("*")]
        if shards := sorted((int(match[1] or 0), path) for match, path in found if match):
            return shards
    return []


LAYOUT = Layout(name=NAME, fits=lambda folder: not folder.config and bool(_models(folder.path)), load=load, save=save)
