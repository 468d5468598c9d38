"""Text models grown into unified ones: image codes, specials and heads are added, what was learned stays."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anymodal.model.config import AnyModalConfig, TransformerConfig
from anymodal.model.folder import ModelFolder
from anymodal.model.unified import AnyModal
from anymodal.published.layout import PublishedFolder, no_memory
from anymodal.published.llama import backbone_rules, read_transformer
from anymodal.published.names import Names, Rule
from anymodal.tokens.config import SPECIALS, ChatTemplate, PictureLayout
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.tensors import TensorFiles
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary

KINDS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "qwen2": {"attention_bias": True, "max_position_embeddings": 32768, "intermediate_size": 22016},
    "qwen3": {"max_position_embeddings": 32768, "intermediate_size": 22016, "head_dim": 128},
}
"""The text models that can grow, and what their own configs mean by a key that is left out."""

ENDS = {"bos": ("bos_token",), "eos": ("eos_token",), "pad": ("pad_token",)}


def grow(
    folder: PublishedFolder,
    image: ImageTokenizer,
    config: AnyModalConfig,
    *,
    grid: tuple[int, int],
    max_seq_len: int | None = None,
    template: ChatTemplate = ChatTemplate(),
) -> ModelFolder:
    """Make a unified model around a Llama or Qwen text model; `config` says all but the transformer.

    Rows of new ids begin as the mean of the old ones (Hewitt, "Initializing new word embeddings", 2021) with a tenth of
    their spread; logits of the old ids stay what they were. `grid` is the picture's (rows, columns) in codes.

    Raises:
        ValueError: another kind of model, or a file that is missing or does not fit.
    """
    if not folder.config:
        raise ValueError(f"a text model must be a folder with a config.json, {folder.path} holds none.")
    kind = str(folder.config.get("model_type"))
    if kind not in KINDS:
        raise ValueError(f"a text model must be one of {', '.join(KINDS)}, got model_type {kind!r}.")
    transformer = _shape(kind, folder.config)
    transformer = replace(transformer, max_seq_len=max_seq_len or transformer.max_seq_len)
    tied = bool(folder.config.get("tie_word_embeddings", False))
    tensors = TensorFiles.of_folder(folder.path, allow_pickle=folder.allow_pickle)
    text, specials = _with_specials(folder, TextTokenizer.load(folder.path / "tokenizer.json"))
    old_rows = tensors["model.embed_tokens.weight"].shape[0]
    vocabulary = Vocabulary.build(
        text_size=max(old_rows, text.vocab_size), specials=specials, codebook_size=image.codebook_size
    )
    model = AnyModal(replace(config, transformer=transformer, tie_embeddings=tied), vocabulary)
    _read_text_model(model, tensors, tied=tied, old_rows=old_rows, where=str(folder.path))
    with torch.no_grad():
        model.start_from_codebook(image.quantizer.vectors(torch.arange(image.codebook_size)[None])[0].float())
    layout = PictureLayout(kind="fixed", sizes=(grid,))
    return ModelFolder(model=model.eval(), text_tokenizer=text, image_tokenizer=image, layout=layout, template=template)


def _shape(kind: str, config: Mapping[str, Any]) -> TransformerConfig:
    if config.get("use_sliding_window"):
        raise ValueError("a text model must attend to its whole context, got use_sliding_window true; take another.")
    defaults = {**KINDS[kind], **{key: value for key, value in config.items() if value is not None}}
    shape = read_transformer(defaults, qk_norm="rms" if kind == "qwen3" else "none")
    return replace(shape, output_bias=kind != "qwen2")


def _with_specials(folder: PublishedFolder, text: TextTokenizer) -> tuple[TextTokenizer, dict[str, int]]:
    """Keep the ends of the tokenizer, and add roles that it lacks or shares, as Qwen's base models pad with eos."""
    found = folder.roles(text, {f"{role}?": candidates for role, candidates in ENDS.items()})
    owners = {found[role]: role for role in ("pad", "bos", "eos") if role in found}  # of one id, eos keeps it
    held: dict[str, int] = {role: index for index, role in owners.items()}
    grown = text.with_specials([role for role in SPECIALS if role not in held])
    return grown, {role: held.get(role, grown.specials.get(role, -1)) for role in SPECIALS}


def _read_text_model(model: AnyModal, tensors: Mapping[str, Tensor], *, tied: bool, old_rows: int, where: str) -> None:
    """Fill transformer, text embedding and text head; the understanding path and image parts stay as they start."""
    alone = replace(model.config, heads="shared", understanding=None, picture_places=0)
    vocabulary = Vocabulary(size=old_rows, specials={}, tables={"image": [0]})
    with no_memory():
        plain = AnyModal(alone, vocabulary)
    rules = backbone_rules("model.", tied=tied)
    norms = [Rule("transformer.blocks.*.attention.*_norm.weight", "model.layers.*.self_attn.*_norm.weight")]
    ignored = ["lm_head.weight"] if tied else []
    Names([*norms, *rules], ignored=ignored).read(tensors, plain, where)
    model.transformer.load_state_dict({name: each.float() for name, each in plain.transformer.state_dict().items()})
    with torch.no_grad():
        _grow_rows(model.embedding.weight, plain.embedding.weight.float())
        if not tied:
            _grow_rows(model.head.weight, plain.head.weight.float())


def _grow_rows(rows: Float[Tensor, "v d"], old: Float[Tensor, "old d"]) -> None:
    new = len(rows) - len(old)
    rows[: len(old)] = old
    rows[len(old) :] = old.mean(0) + 0.1 * old.std(0) * torch.randn(new, old.shape[1])
