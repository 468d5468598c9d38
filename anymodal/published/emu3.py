"""Emu3 (arXiv:2409.18869), Chat and Gen, in the layout of transformers, and its image tokenizer alone."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from anymodal.model.config import AnyModalConfig
from anymodal.model.folder import ModelFolder
from anymodal.model.unified import AnyModal
from anymodal.published.generation import read_generation
from anymodal.published.layout import Layout, PublishedFolder, no_memory, write_side_files
from anymodal.published.llama import backbone_rules, read_transformer, refuse_unlike, write_transformer
from anymodal.published.movq import movq_names, read_movq_config, write_movq_config
from anymodal.published.names import Names
from anymodal.tokens.config import ChatTemplate, PictureLayout
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.image_config import ImageTokenizerConfig
from anymodal.tokens.picture_config import PictureFit, Resample
from anymodal.tokens.tensors import TensorFiles
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary
from anymodal.tokens.weights import save_weights, write_json

NAME = "emu3"
IMAGE_TOKENIZER = "emu3_vqgan"
ROLES = {
    "bos": ("bos_token", "<|extra_203|>"),
    "eos": ("eos_token", "<|extra_204|>"),
    "pad": ("pad_token", "<|endoftext|>"),
    "boi": ("boi_token", "<|image start|>"),
    "eoi": ("eoi_token", "<|image end|>"),
    "img": ("image_wrapper_token", "<|image token|>"),
    "eol": ("eol_token", "<|extra_200|>"),
    "eof": ("eof_token", "<|extra_201|>"),
    "look?": ("image_token", "<image>"),
}
TEXT_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 184622, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 9216,
    "rms_norm_eps": 1e-5, "rope_theta": 1e6, "attention_dropout": 0.1,
}  # fmt: skip
"""What transformers' Emu3TextConfig means by a key that a config.json leaves out, where Llama's means another thing."""

MAP, LINE_END, PLACEHOLDER = "vocabulary_map", "<|extra_200|>", "<image>"
CODE = re.compile(r"<\|visual token (\d+)\|>")
TEMPLATE = ChatTemplate(
    user=(("USER: ",), (" ",)),
    assistant=(("ASSISTANT:",), ("<eos>",)),
    system=("You are a helpful assistant. ",),
    before_answer=" ",
    answered=(" ",),
    drawing="bare",
)
DEFAULT_AREA = 720 * 720
"""Pixels of a picture that is drawn without a size."""

RESAMPLES: Mapping[int, Resample] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
INSIDE = "vqmodel."
OTHER_NAMES = {"model.text_model.": "text_model.model.", "model.vqmodel.": INSIDE, "lm_head.": "text_model.lm_head."}
"""How some releases of transformers begin the names of tensors in a file, and how the others do."""


def names(config: AnyModalConfig) -> Names:
    """Return the names of the model's tensors; those of the image tokenizer are apart."""
    rules = backbone_rules("text_model.model.", tied=config.tie_embeddings, head="text_model.lm_head.weight")
    return Names(rules, ignored=(f"{INSIDE}*", *(["text_model.lm_head.weight"] if config.tie_embeddings else [])))


def read_config(config: Mapping[str, Any]) -> AnyModalConfig:
    """Read the shape of the model from their config.json.

    Raises:
        ValueError: the parts do not fit each other, or it asks for what we lack; both numbers are named.
    """
    transformer = read_transformer(config.get("text_config") or {}, defaults=TEXT_DEFAULTS)
    return AnyModalConfig(
        transformer=replace(transformer, dropout=transformer.attention_dropout),  # one number for both in Emu3
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def read_codes(vocabulary_map: Mapping[str, int] | None, codebook_size: int) -> list[int]:
    """Return the id of every code, as their config.json maps tokens to ids.

    Raises:
        ValueError: there is no map, or its visual tokens are not the codes of the image tokenizer.
    """
    if not vocabulary_map:
        raise ValueError(f"config.json has no {MAP}, so no id of an image code is known; convert the checkpoint again.")
    found = {int(match[1]): index for token, index in vocabulary_map.items() if (match := CODE.fullmatch(token))}
    if len(found) != codebook_size or max(found, default=-1) + 1 != codebook_size:
        raise ValueError(
            f"{MAP} has {len(found)} visual tokens, the last of them {max(found, default='none')}, but the image "
            f"tokenizer has {codebook_size} codes; use the files of one model together."
        )
    return [found[code] for code in range(codebook_size)]


def grids(fit: PictureFit, factor: int) -> tuple[tuple[int, int], ...]:
    """Return every grid that a picture may have, the one that is drawn without a size first, then by nearness to it.

    Raises:
        ValueError: no grid has an area in the range of `fit`.
    """
    least, most = math.ceil(fit.min_pixels / factor**2), fit.max_pixels // factor**2
    longest = math.isqrt(int(most * fit.max_ratio))
    found = [
        (rows, columns)
        for rows in range(1, longest + 1)
        for columns in range(math.ceil(least / rows), min(most // rows, longest) + 1)
        if max(rows, columns) <= fit.max_ratio * min(rows, columns)
    ]
    if not found:
        raise ValueError(
            f"pictures of {fit.min_pixels} to {fit.max_pixels} pixels must have a grid of codes, but a code spans "
            f"{factor} x {factor} pixels; the preprocessor's config is broken."
        )
    side = round(math.sqrt(min(max(DEFAULT_AREA, fit.min_pixels), fit.max_pixels)) / factor)
    return tuple(sorted(found, key=lambda grid: (max(abs(grid[0] - side), abs(grid[1] - side)), grid)))


def read_fit(images: Mapping[str, Any], factor: int) -> PictureFit:
    """Read how pictures are brought to size.

    Raises:
        ValueError: they are brought to sizes that the image tokenizer does not have, or by an unknown filter.
    """
    theirs = int(images.get("spatial_factor", factor))
    if theirs != factor:
        raise ValueError(
            f"the preprocessor's spatial_factor is {theirs}, but a code of the image tokenizer spans {factor} pixels; "
            "use the files of one model together."
        )
    resample = int(images.get("resample", 3))
    if resample not in RESAMPLES:
        raise ValueError(f"the preprocessor's resample must be one of {[*RESAMPLES]}, got {resample}.")
    deviation = (images.get("image_std") or (0.5,))[0]
    usual = PictureFit(kind="area")
    return PictureFit(
        kind="area",
        resample=RESAMPLES[resample],
        scale=float(images.get("rescale_factor", 1 / 255)) / deviation,
        min_pixels=int(images.get("min_pixels", usual.min_pixels)),
        max_pixels=int(images.get("max_pixels", usual.max_pixels)),
    )


def load(folder: PublishedFolder) -> ModelFolder:
    """Read a folder that transformers wrote.

    Raises:
        ValueError: a file is missing, or the parts do not fit each other.
    """
    config, image_config = read_config(folder.config), _image_config(folder, folder.config.get("vq_config") or {})
    text = TextTokenizer.load(folder.path / "tokenizer.json")
    vocabulary = Vocabulary(
        size=int((folder.config.get("text_config") or {}).get("vocab_size", TEXT_DEFAULTS["vocab_size"])),
        specials=folder.roles(text, ROLES),
        tables={"image": read_codes(folder.config.get(MAP), image_config.quantizer.codebook_size)},
    )
    tensors = _tensors(folder)
    with no_memory():
        model = AnyModal(config, vocabulary)
    names(config).read(tensors, model, str(folder.path))
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    return ModelFolder(
        model=model.eval(),
        text_tokenizer=text,
        image_tokenizer=_image_tokenizer(folder, image_config, tensors),
        layout=PictureLayout(kind="rows", sizes=grids(image_config.pictures, image_config.down_sampling)),
        template=TEMPLATE,
        generation=read_generation(
            folder,
            eos=vocabulary.special("eos"),
            image={"temperature": 1.0, "guidance_scale": 3.0, "top_k": 2048},
            text={"temperature": 0.0},
        ),
        origin=folder.origin(NAME),
    )


def load_image_tokenizer(path: str | Path, *, allow_pickle: bool = False) -> ImageTokenizer:
    """Read Emu3's image tokenizer from a folder that holds it alone, or a whole model.

    Raises:
        ValueError: it is another model's folder, or a file is missing or does not fit.
    """
    folder = PublishedFolder.open(Path(path), allow_pickle=allow_pickle)
    kind = folder.config.get("model_type")
    if kind not in (NAME, IMAGE_TOKENIZER):
        raise ValueError(
            f"an image tokenizer of Emu3 has model_type {IMAGE_TOKENIZER!r} (alone) or {NAME!r}, the config.json of "
            f"{path} says {kind!r}; name another folder."
        )
    alone = kind == IMAGE_TOKENIZER
    config = _image_config(folder, folder.config if alone else folder.config.get("vq_config") or {})
    return _image_tokenizer(folder, config, _tensors(folder), prefix="" if alone else INSIDE)


def save(parts: ModelFolder, folder: Path) -> None:
    """Write a folder that transformers loads.

    Raises:
        ValueError: the layout cannot express this model; the reason is named.
    """
    _check_expressible(parts)
    drawn = movq_names(parts.image_tokenizer.config).write(parts.image_tokenizer.state_dict())
    image = {INSIDE + name: tensor for name, tensor in drawn.items()}
    save_weights({**names(parts.model.config).write(parts.model.state_dict()), **image}, folder)
    write_json(folder / "config.json", write_config(parts))
    write_side_files(parts, NAME, folder, {} if _came(parts) else _made(parts))


def write_config(parts: ModelFolder) -> dict[str, Any]:
    """Return their config.json of a model; what it came in with stays where nothing here says otherwise."""
    config, vocabulary = parts.model.config, parts.model.vocabulary
    came = _came(parts)
    ids = {f"{role}_token_id": vocabulary.special(role) for role in ("bos", "eos", "pad")}
    text = {**write_transformer(config.transformer, vocab_size=vocabulary.size), **ids}
    return {
        "model_type": NAME,
        "architectures": ["Emu3ForConditionalGeneration"],
        **came,
        "tie_word_embeddings": config.tie_embeddings,
        MAP: came[MAP] if MAP in came else _vocabulary_map(vocabulary),
        "text_config": {"model_type": "emu3_text_model", **came.get("text_config", {}), **text},
        "vq_config": {
            "model_type": IMAGE_TOKENIZER,
            **came.get("vq_config", {}),
            **write_movq_config(parts.image_tokenizer.config),
        },
    }


def _tensors(folder: PublishedFolder) -> dict[str, Tensor]:
    """Return the tensors of a folder, mapped, under the names that transformers writes."""
    stored = TensorFiles.of_folder(folder.path, allow_pickle=folder.allow_pickle)
    return {_written_name(name): tensor for name, tensor in stored.items()}


def _written_name(name: str) -> str:
    for other, written in OTHER_NAMES.items():
        if name.startswith(other):
            return written + name.removeprefix(other)
    return name


def _image_config(folder: PublishedFolder, theirs: Mapping[str, Any]) -> ImageTokenizerConfig:
    config = read_movq_config(theirs)
    return replace(config, pictures=read_fit(folder.image_processor(), config.down_sampling))


def _image_tokenizer(
    folder: PublishedFolder, config: ImageTokenizerConfig, tensors: Mapping[str, Tensor], *, prefix: str = INSIDE
) -> ImageTokenizer:
    with no_memory():
        image = ImageTokenizer(config)
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    movq_names(config).read(inside, image, str(folder.path))
    return image.eval()


def _came(parts: ModelFolder) -> Mapping[str, Any]:
    """Return the config.json that the model came in with, empty where it came in no such layout."""
    return parts.origin.config if parts.origin is not None and parts.origin.layout == NAME else {}


def _vocabulary_map(vocabulary: Vocabulary) -> dict[str, int]:
    codes = {f"<|visual token {code:06d}|>": index for code, index in enumerate(vocabulary.table("image").tolist())}
    return {PLACEHOLDER: vocabulary.special("look"), LINE_END: vocabulary.special("eol"), **codes}


def _check_expressible(parts: ModelFolder) -> None:
    config = parts.model.config
    refuse_unlike(config.transformer, NAME, norm_position="pre", qk_norm="none")
    if config.heads != "shared" or config.understanding is not None or config.picture_places:
        raise ValueError(
            f"the layout {NAME!r} has shared heads, no understanding path and no learned picture places, this model "
            f"has heads {config.heads!r}, understanding {config.understanding is not None} and picture_places "
            f"{config.picture_places}; save it without a layout."
        )
    if parts.layout.kind != "rows":
        raise ValueError(
            f"the layout {NAME!r} writes pictures as 'rows', this model as {parts.layout.kind!r}; save it without a "
            "layout."
        )


def _made(parts: ModelFolder) -> dict[str, dict[str, Any]]:
    """Return the side files of a model that did not come from Emu3's."""
    special, factor = parts.model.vocabulary.special, parts.image_tokenizer.config.down_sampling
    keys = {candidates[0]: role.removesuffix("?") for role, candidates in ROLES.items()}
    tokens = {key: parts.text_tokenizer.piece(special(role)) for key, role in keys.items()}
    named = {key: tokens.pop(key) for key in ("bos_token", "eos_token", "pad_token")}
    areas = [rows * columns * factor**2 for rows, columns in parts.layout.sizes]
    images = {
        "image_processor_type": "Emu3ImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "min_pixels": min(areas), "max_pixels": max(areas), "spatial_factor": factor,
    }  # fmt: skip
    ids = {f"{role}_token_id": special(role) for role in ("bos", "eos", "pad")}
    return {
        "generation_config.json": ids,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", **named, "extra_special_tokens": tokens,
        },
        "processor_config.json": {"processor_class": "Emu3Processor", "image_processor": images},
    }  # fmt: skip


LAYOUT = Layout(name=NAME, fits=lambda folder: folder.config.get("model_type") == NAME, load=load, save=save)
