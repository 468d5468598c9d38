"""Chameleon (arXiv:2405.09818) in the layout of transformers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from anymodal.model.config import AnyModalConfig
from anymodal.model.folder import ModelFolder, Origin
from anymodal.model.unified import AnyModal
from anymodal.published.chameleon_vqgan import load_image_tokenizer, save_decoder
from anymodal.published.generation import read_generation
from anymodal.published.layout import Layout, PublishedFolder, no_memory, write_side_files
from anymodal.published.llama import backbone_rules, read_transformer, refuse_unlike, write_transformer
from anymodal.published.names import Names
from anymodal.published.vqgan import taming_names, without_decoder, write_chameleon_config
from anymodal.tokens.config import ChatTemplate, PictureLayout
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.tensors import TensorFiles
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary
from anymodal.tokens.weights import save_weights, write_json

NAME = "chameleon"
ROLES = {
    "bos": ("bos_token", "<s>"),
    "eos": ("eos_token", "</s>"),
    "pad": ("pad_token", "<pad>"),
    "boi": ("boi_token", "<racm3:break>"),
    "eoi": ("eoi_token", "<eoss>"),
    "sep": ("sep_token", "<reserved08706>"),
    "look": ("image_token", "<image>"),
}
PLACEHOLDER = "<image>"
DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "num_key_value_heads": 32}
VOCAB_SIZE, RESOLUTION = 65536, 512
TEMPLATE = ChatTemplate(user=((), ("<sep>",)), assistant=((), ("<eos>",)), unconditional="bare")
GENERATION = {
    "image": {"temperature": 0.7, "top_p": 0.9, "guidance_scale": 3.0, "image_guidance_scale": 1.2},
    "text": {"temperature": 0.7, "top_p": 0.9},
}
"""What the released code samples with."""

_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")
_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")


def names(config: AnyModalConfig) -> Names:
    """Return the names of the model's tensors; those of the image tokenizer are apart."""
    rules = backbone_rules("model.", tied=config.tie_embeddings)
    return Names(rules, ignored=("model.vqmodel.*", *(["lm_head.weight"] if config.tie_embeddings else [])))


def code_table(vocabulary_map: Mapping[str, Any], codebook_size: int) -> list[int]:
    """Return the id of every image code: its token is "IMGIMG", its digits as letters from A on, and "Z".

    Raises:
        ValueError: the map has no such tokens, or does not name every code of the codebook once.

    >>> code_table({"IMGIMGBZ": 7, "IMGIMGAZ": 9, "a": 1}, codebook_size=2)
    [9, 7]
    """
    named = {name: index for name, index in vocabulary_map.items() if name.startswith("IMGIMG")}
    wrong = [
        name
        for name, index in named.items()
        if not re.fullmatch(r"IMGIMG[A-J]+Z", name) or not isinstance(index, int) or isinstance(index, bool)
    ]
    if wrong:
        raise ValueError(f"vocabulary_map must map names such as 'IMGIMGBCZ' to ids, got {wrong[0]!r}; it is broken.")
    table = {int(name[len("IMGIMG") : -1].translate(_DIGITS)): index for name, index in named.items()}
    if len(named) != codebook_size or table.keys() != set(range(codebook_size)):
        raise ValueError(
            f"vocabulary_map must name each of the image tokenizer's {codebook_size} codes once, got {len(named)} "
            f"names of {len(table)} codes up to {max(table, default=-1)}; use the files of one model together."
        )
    return [table[code] for code in range(codebook_size)]


def read_config(config: Mapping[str, Any]) -> AnyModalConfig:
    """Read the shape of the model from their config.json.

    Raises:
        ValueError: heads do not divide, or it asks for what we lack; both numbers are named.
    """
    transformer = read_transformer(config, qk_norm="layer", swin_norm=bool(config.get("swin_norm")), defaults=DEFAULTS)
    if transformer.head_dim * transformer.num_heads != transformer.dim:
        raise ValueError(
            f"head_dim x num_attention_heads must be hidden_size, got {transformer.head_dim} x {transformer.num_heads} "
            f"and {transformer.dim}; the config is broken."
        )
    return AnyModalConfig(
        transformer=transformer, heads="shared", tie_embeddings=bool(config.get("tie_word_embeddings", False))
    )


def load(folder: PublishedFolder) -> ModelFolder:
    """Read a folder that transformers wrote.

    Raises:
        ValueError: a file is missing, or the parts do not fit each other.
    """
    config = read_config(folder.config)
    tensors = _weights(folder)
    image = load_image_tokenizer(folder, tensors)
    vocabulary_map = folder.config.get("vocabulary_map")
    if not isinstance(vocabulary_map, Mapping):
        raise ValueError(f"{folder.path / 'config.json'} lacks vocabulary_map, which names the ids of image codes.")
    text = TextTokenizer.load(folder.path / "tokenizer.json")
    _check_same_ids(vocabulary_map, text)
    vocabulary = Vocabulary(
        size=_vocab_size(folder.config, tensors),
        specials=folder.roles(text, ROLES),
        tables={"image": code_table(vocabulary_map, image.codebook_size)},
    )
    parts = gather(
        build(str(folder.path), config, vocabulary, tensors, names(config)),
        text=text,
        image=image,
        grid=_grid(folder, image.config.down_sampling),
        origin=folder.origin(NAME),
    )
    return replace(parts, generation=read_generation(folder, eos=vocabulary.special("eos"), **GENERATION, draws=False))


def build(
    where: str, config: AnyModalConfig, vocabulary: Vocabulary, tensors: Mapping[str, Tensor], names: Names
) -> AnyModal:
    """Build the model of tensors, whatever they are called.

    Raises:
        ValueError: tensors are missing, unknown or of other shapes.
    """
    with no_memory():
        model = AnyModal(config, vocabulary)
    names.read(tensors, model, where)
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    return model.eval()


def gather(
    model: AnyModal, *, text: TextTokenizer, image: ImageTokenizer, grid: tuple[int, int], origin: Origin
) -> ModelFolder:
    """Put the parts of a Chameleon together, with what all of them have alike."""
    return ModelFolder(
        model=model,
        text_tokenizer=text,
        image_tokenizer=image.eval(),
        layout=PictureLayout(kind="fixed", sizes=(grid,)),
        template=TEMPLATE,
        generation=GENERATION,
        origin=origin,
    )


def save(parts: ModelFolder, folder: Path) -> None:
    """Write a folder that transformers loads; a decoder of pictures, which it does not know, goes beside the weights.

    Raises:
        ValueError: the layout cannot express this model; the reason is named.
    """
    _check_expressible(parts)
    model, image = parts.model, parts.image_tokenizer
    table = taming_names(image.config)
    seen = {f"model.vqmodel.{name}": each for name, each in table.write(without_decoder(image.state_dict())).items()}
    save_weights({**names(model.config).write(model.state_dict()), **seen}, folder)
    if image.config.has_decoder:
        save_decoder(image, folder)
    write_json(folder / "config.json", _write_config(parts))
    write_side_files(parts, NAME, folder, _side_files(parts))


def _weights(folder: PublishedFolder) -> TensorFiles:
    """Open the weights; a VQGAN beside them is not taken for them."""
    pickle = folder.path / "pytorch_model.bin"
    if pickle.is_file() and folder.allow_pickle and not list(folder.path.glob("model*.safetensors")):
        return TensorFiles.of_file(pickle, allow_pickle=True)
    return TensorFiles.of_folder(folder.path, allow_pickle=folder.allow_pickle)


def _check_same_ids(vocabulary_map: Mapping[str, Any], text: TextTokenizer) -> None:
    """Check that config and text tokenizer give image codes and the placeholder the same ids.

    Raises:
        ValueError: they do not; both ids are named.
    """
    for name, index in vocabulary_map.items():
        if name.startswith("IMGIMG") or name == PLACEHOLDER:
            other = text.id_of(name)
            if other is not None and other != index:
                raise ValueError(
                    f"vocabulary_map says that {name} is id {index}, tokenizer.json says {other}; use the files of one "
                    "model together."
                )


def _vocab_size(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    size, embedding = int(config.get("vocab_size", VOCAB_SIZE)), tensors.get("model.embed_tokens.weight")
    if embedding is not None and embedding.shape[0] != size:
        raise ValueError(
            f"config.json says vocab_size {size}, but model.embed_tokens.weight has {embedding.shape[0]} rows; use the "
            "files of one model together."
        )
    return size


def _grid(folder: PublishedFolder, down_sampling: int) -> tuple[int, int]:
    """Return rows and columns of a picture: of what their processor crops, else of the resolution of the VQGAN.

    Raises:
        ValueError: the image tokenizer does not divide it, or the processor counts other codes; both are named.
    """
    crop = folder.image_processor().get("crop_size")
    side = (folder.config.get("vq_config") or {}).get("resolution", RESOLUTION)
    sides = crop if isinstance(crop, Mapping) else {"height": crop or side, "width": crop or side}
    height, width = (int(sides.get(name, side)) for name in ("height", "width"))
    if height % down_sampling or width % down_sampling:
        raise ValueError(
            f"pictures have {height} x {width} pixels, which {down_sampling}, the down-sampling of the image "
            "tokenizer, does not divide; the config is broken."
        )
    rows, columns = height // down_sampling, width // down_sampling
    count = folder.json("processor_config.json").get("image_seq_length", rows * columns)
    if count != rows * columns:
        raise ValueError(
            f"processor_config.json says image_seq_length {count}, but pictures of {height} x {width} pixels have "
            f"{rows} x {columns} = {rows * columns} codes; the config is broken."
        )
    return rows, columns


def _check_expressible(parts: ModelFolder) -> None:
    config, vocabulary = parts.model.config, parts.model.vocabulary
    backbone = config.transformer
    refuse_unlike(backbone, NAME, qk_norm="layer", head_dim=backbone.dim // backbone.num_heads)
    if config.heads != "shared" or config.understanding is not None or config.picture_places:
        raise ValueError(
            f"the layout {NAME!r} has shared heads, no understanding path and no learned picture places, this model "
            f"has heads {config.heads!r}, understanding {config.understanding is not None} and picture_places "
            f"{config.picture_places}; save it without a layout."
        )
    if parts.layout.kind != "fixed":
        raise ValueError(f"the layout {NAME!r} has a fixed grid, not {parts.layout.kind!r}; save without a layout.")
    lacking = [role for role in ROLES if role != "sep" and not vocabulary.has_special(role)]
    if lacking:
        raise ValueError(f"the layout {NAME!r} needs the specials {', '.join(ROLES)}; this model lacks {lacking}.")
    _separator(parts)


def _separator(parts: ModelFolder) -> int:
    """Return the one id between a question and its answer, which their processor writes.

    Raises:
        ValueError: something else stands there.
    """
    between = (*parts.template.user[1], *parts.template.assistant[0])
    role = re.fullmatch(r"<(\w+)>", between[0]) if len(between) == 1 else None
    if role is None or parts.template.system or parts.template.before_answer or parts.template.beside_look:
        raise ValueError(
            f"the layout {NAME!r} has one special id between a question and its answer and no other text of its own, "
            f"this model has {between}; save it without a layout."
        )
    return parts.model.vocabulary.special(role[1])


def _write_config(parts: ModelFolder) -> dict[str, Any]:
    """Return their config.json of a model; what it came in with stays where nothing here says otherwise."""
    config, special = parts.model.config, parts.model.vocabulary.special
    came = parts.origin.config if parts.origin is not None and parts.origin.layout == NAME else {}
    vq = came.get("vq_config") or {}
    side = parts.layout.sizes[0][0] * parts.image_tokenizer.config.down_sampling
    backbone = write_transformer(config.transformer, vocab_size=parts.model.num_text_rows)
    del backbone["head_dim"]  # follows from the others there
    return {
        "model_type": NAME,
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_parallel_size": 1,
        **{f"{role}_token_id": special(role) for role in ("bos", "eos", "pad")},
        **came,
        **backbone,
        "swin_norm": config.transformer.norm_position == "swin",
        "tie_word_embeddings": config.tie_embeddings,
        "vq_config": {
            "model_type": "chameleon_vqgan",
            **vq,
            **write_chameleon_config(parts.image_tokenizer.config, resolution=vq.get("resolution", side)),
        },
        "vocabulary_map": {
            **(came.get("vocabulary_map") or _pieces(parts.text_tokenizer)),
            **_code_names(parts.model.vocabulary.table("image").tolist()),
            PLACEHOLDER: special("look"),
        },
    }


def _pieces(text: TextTokenizer) -> dict[str, int]:
    pieces = {text.piece(index): index for index in range(text.vocab_size)}
    return {piece: index for piece, index in pieces.items() if text.id_of(piece) == index}


def _code_names(table: Sequence[int]) -> dict[str, int]:
    return {f"IMGIMG{str(code).translate(_LETTERS)}Z": index for code, index in enumerate(table)}


def _side_files(parts: ModelFolder) -> dict[str, dict[str, Any]]:
    """Return what their tokenizer, processor and sampling need to know of a model that came in another layout."""
    special, piece = parts.model.vocabulary.special, parts.text_tokenizer.piece
    ids = {role: special(role) for role in ("bos", "eos", "pad")}
    (rows, columns), factor = parts.layout.sizes[0], parts.image_tokenizer.config.down_sampling
    tokens = {"boi": special("boi"), "eoi": special("eoi"), "image": special("look"), "sep": _separator(parts), **ids}
    return {
        "generation_config.json": {
            **{f"{role}_token_id": index for role, index in ids.items()},
            **{"do_sample": True, **GENERATION["text"]},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "TokenizersBackend",
            **{f"{role}_token": piece(index) for role, index in tokens.items()},
        },
        "processor_config.json": {
            "processor_class": "ChameleonProcessor",
            "image_seq_length": rows * columns,
            "image_token": piece(special("look")),
            "image_processor": {
                "image_processor_type": "ChameleonImageProcessor",
                "size": {"shortest_edge": min(rows, columns) * factor},
                "crop_size": {"height": rows * factor, "width": columns * factor},
                "image_mean": [1.0] * 3,
                "image_std": [1.0] * 3,
                "rescale_factor": parts.image_tokenizer.config.pictures.scale,
            },
        },
    }


LAYOUT = Layout(name=NAME, fits=lambda folder: folder.config.get("model_type") == NAME, load=load, save=save)
