"""Janus and Janus-Pro (arXiv:2410.13848, arXiv:2501.17811) in the layout of transformers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anymodal.model.config import AnyModalConfig, UnderstandingConfig
from anymodal.model.folder import ModelFolder
from anymodal.model.unified import AnyModal
from anymodal.published.generation import read_generation
from anymodal.published.layout import Layout, PublishedFolder, no_memory, write_side_files
from anymodal.published.llama import backbone_rules, read_transformer, refuse_unlike, write_transformer
from anymodal.published.names import Names, Rule, under
from anymodal.published.vqgan import janus_names, read_janus_config, write_janus_config
from anymodal.tokens.config import ChatTemplate, PictureLayout
from anymodal.tokens.image import ImageTokenizer
from anymodal.tokens.picture_config import PictureFit
from anymodal.tokens.tensors import TensorFiles
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary
from anymodal.tokens.weights import save_weights, write_json

NAME = "janus"
DRAW_FIT = PictureFit(kind="resize-crop")
ROLES = {
    "bos": ("bos_token", "<｜begin▁of▁sentence｜>"),
    "eos": ("eos_token", "<｜end▁of▁sentence｜>"),
    "pad": ("pad_token", "<｜▁pad▁｜>"),
    "boi": ("boi_token", "<begin_of_image>"),
    "eoi": ("eoi_token", "<end_of_image>"),
    "look": ("image_token", "<image_placeholder>"),
    "user?": ("<|User|>",),
    "assistant?": ("<|Assistant|>",),
}
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language.\n\n"
)
VISION_DEFAULTS = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 384, "patch_size": 16,
    "layer_norm_eps": 1e-6, "mlp_ratio": 4.0, "depth": 2, "projection_dim": 2048, "hidden_act": "gelu",
}  # fmt: skip
VQ_DEFAULTS = {"embed_dim": 8, "num_embeddings": 16384, "projection_dim": 2048, "image_token_embed_dim": 2048}


def names(config: AnyModalConfig) -> Names:
    """Return the names of the model's tensors; those of the image tokenizer are apart."""
    assert config.understanding is not None, "Janus has an understanding path"
    vision, ours = "model.vision_model.", "understanding."
    layer, block = f"{vision}encoder.layers.*.", f"{ours}blocks.*."
    rules = [
        *backbone_rules("model.language_model.", tied=config.tie_embeddings),
        Rule("image_embedding.weight", "model.generation_embeddings.weight"),
        *under("image_aligner.", "model.generation_aligner.", [Rule("0.*", "fc1.*"), Rule("2.*", "hidden_layers.0.*")]),
        *under("image_head.", "model.generation_head.", [Rule("0.*", "proj_out.*"), Rule("2.*", "vision_head.*")]),
        Rule(f"{ours}patch_embedding.*", f"{vision}embeddings.patch_embedding.*"),
        Rule(f"{ours}position_embedding", f"{vision}embeddings.position_embedding.weight"),
        Rule(f"{ours}norm.*", f"{vision}post_layernorm.*"),
        Rule(f"{block}norm_1.*", f"{layer}layer_norm1.*"),
        Rule(f"{block}norm_2.*", f"{layer}layer_norm2.*"),
        Rule(f"{block}out_proj.*", f"{layer}self_attn.projection_layer.*"),
        Rule(f"{block}fc_1.*", f"{layer}mlp.fc1.*"),
        Rule(f"{block}fc_2.*", f"{layer}mlp.fc2.*"),
        *(Rule(f"{block}{name}.*", f"{layer}self_attn.{name}.*") for name in ("q_proj", "k_proj", "v_proj")),
        Rule(f"{ours}connector.0.*", "model.aligner.fc1.*"),
        *(
            Rule(f"{ours}connector.{2 * i}.*", f"model.aligner.hidden_layers.{i - 1}.*")
            for i in range(1, config.understanding.connector_depth)
        ),
    ]
    return Names(rules, ignored=("model.vqmodel.*", *(["lm_head.weight"] if config.tie_embeddings else [])))


def read_config(config: Mapping[str, Any], images: Mapping[str, Any]) -> AnyModalConfig:
    """Read the shape of the model from their config.json, and how it looks at pictures from their image processor.

    Raises:
        ValueError: the parts do not fit each other, or it asks for what we lack; both numbers are named.
    """
    text, vision = config.get("text_config", {}), {**VISION_DEFAULTS, **config.get("vision_config", {})}
    vq = {**VQ_DEFAULTS, **config.get("vq_config", {})}
    transformer = read_transformer(text)
    if vision.get("use_qk_norm"):
        raise ValueError(
            "the vision encoder of a Janus must have use_qk_norm false, got true; no published one has it."
        )
    if vision["hidden_act"] not in ("gelu", "gelu_pytorch_tanh"):
        raise ValueError(f"the vision encoder's hidden_act must be gelu, got {vision['hidden_act']!r}.")
    for part, width in (("vision_config", vision["projection_dim"]), ("vq_config", vq["image_token_embed_dim"])):
        if width != transformer.dim:
            raise ValueError(
                f"{part} leads to {width} channels, but the language model has {transformer.dim}; the config is broken."
            )
    understanding = UnderstandingConfig(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        dim=vision["hidden_size"],
        depth=vision["num_hidden_layers"],
        num_heads=vision["num_attention_heads"],
        hidden_dim=int(vision["hidden_size"] * vision["mlp_ratio"]),
        norm_eps=vision["layer_norm_eps"],
        connector_depth=vision["depth"],
        activation="gelu" if vision["hidden_act"] == "gelu" else "gelu_tanh",
        fit=look_fit(images),
    )
    if vision.get("num_image_tokens", understanding.num_tokens) != understanding.num_tokens:
        raise ValueError(
            f"vision_config says num_image_tokens {vision['num_image_tokens']}, but its patches are "
            f"{understanding.num_tokens}; the config is broken."
        )
    return AnyModalConfig(
        transformer=transformer,
        understanding=understanding,
        heads="decoupled",
        tie_embeddings=bool(config.get("tie_word_embeddings", True)),
        image_embedding_dim=vq["embed_dim"],
        image_head_dim=vq["projection_dim"],
    )


def load(folder: PublishedFolder) -> ModelFolder:
    """Read a folder that transformers wrote.

    Raises:
        ValueError: a file is missing, or the parts do not fit each other.
    """
    config = read_config(folder.config, folder.image_processor())
    tensors = TensorFiles.of_folder(folder.path, allow_pickle=folder.allow_pickle)
    text = TextTokenizer.load(folder.path / "tokenizer.json")
    image_config = replace(read_janus_config(folder.config.get("vq_config", {})), pictures=DRAW_FIT)
    with no_memory():
        image = ImageTokenizer(image_config)
    inside = {name.removeprefix("model.vqmodel."): name for name in tensors if name.startswith("model.vqmodel.")}
    janus_names(image_config).read({short: tensors[name] for short, name in inside.items()}, image, str(folder.path))
    size = int(folder.config.get("text_config", {}).get("vocab_size", 32000))
    return assemble(folder, config, tensors=tensors, names=names(config), text=text, image=image, text_size=size)


def look_fit(images: Mapping[str, Any]) -> PictureFit:
    """Return how pictures are brought to the vision encoder's square: padded with the colour of their mean."""
    red, green, blue = (int(255 * mean) for mean in images.get("image_mean") or (0.5, 0.5, 0.5))
    return PictureFit(kind="resize-pad", pad_colour=(red, green, blue), min_side=int(images.get("min_size", 14)))


def assemble(
    folder: PublishedFolder,
    config: AnyModalConfig,
    *,
    tensors: Mapping[str, torch.Tensor],
    names: Names,
    text: TextTokenizer,
    image: ImageTokenizer,
    text_size: int,
) -> ModelFolder:
    """Put a Janus together from its parts, whatever they were called.

    Raises:
        ValueError: the grid of the image tokenizer is not what the vision encoder's size gives, or tensors do not fit.
    """
    assert config.understanding is not None, "Janus has an understanding path"
    roles = folder.roles(text, ROLES)
    vocabulary = Vocabulary.build(text_size=text_size, specials=roles, codebook_size=image.codebook_size)
    with no_memory():
        model = AnyModal(config, vocabulary)
    names.read(tensors, model, str(folder.path))
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    side = config.understanding.image_size // image.config.down_sampling
    if side * image.config.down_sampling != config.understanding.image_size:
        raise ValueError(
            f"pictures have {config.understanding.image_size} pixels a side, which {image.config.down_sampling}, the "
            "down-sampling of the image tokenizer, does not divide; the config is broken."
        )
    return ModelFolder(
        model=model.eval(),
        text_tokenizer=text,
        image_tokenizer=image.eval(),
        layout=PictureLayout(kind="fixed", sizes=((side, side),)),
        template=template_of(roles, system=bool(folder.json("processor_config.json").get("use_default_system_prompt"))),
        generation=read_generation(
            folder, eos=roles["eos"], image={"temperature": 1.0, "guidance_scale": 5.0}, text={"temperature": 0.0}
        ),
        origin=folder.origin(NAME),
    )


def template_of(roles: Mapping[str, int], *, system: bool) -> ChatTemplate:
    """Return the conversation format: Janus-Pro has tokens for the roles, Janus spells them."""
    user, assistant = (("<user>", ": "), ("<assistant>", ":")) if "user" in roles else (("User: ",), ("Assistant:",))
    return ChatTemplate(
        user=(user, ("\n\n",)),
        assistant=(assistant, ("<eos>",)),
        system=(SYSTEM,) if system else (),
        before_answer=" ",
        beside_look="\n",
        unconditional="padded",
    )


def save(parts: ModelFolder, folder: Path) -> None:
    """Write a folder that transformers loads.

    Raises:
        ValueError: the layout cannot express this model; the reason is named.
    """
    check_expressible(parts, NAME)
    model = parts.model
    drawn = janus_names(parts.image_tokenizer.config).write(parts.image_tokenizer.state_dict())
    image = {f"model.vqmodel.{name}": tensor for name, tensor in drawn.items()}
    save_weights({**names(model.config).write(model.state_dict()), **image}, folder)
    write_json(folder / "config.json", write_config(parts))
    write_side_files(parts, NAME, folder, _side_files(parts))


def _side_files(parts: ModelFolder) -> dict[str, dict[str, Any]]:
    """Make what stands beside the weights of a model that did not come in this layout."""
    special, vision = parts.model.vocabulary.special, parts.model.config.understanding
    assert vision is not None, "Janus has an understanding path"
    named = {"boi_token": "boi", "eoi_token": "eoi", "image_token": "look"}
    extra = {key: parts.text_tokenizer.piece(special(role)) for key, role in named.items()}
    ends = {f"{role}_token": parts.text_tokenizer.piece(special(role)) for role in ("bos", "eos", "pad")}
    size = {"height": vision.image_size, "width": vision.image_size}
    return {
        "generation_config.json": {
            **{f"{role}_token_id": special(role) for role in ("bos", "eos", "pad")},
            "generation_kwargs": {"boi_token_id": special("boi")},
            "guidance_scale": 5.0,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", **ends, **extra, "extra_special_tokens": extra,
            "model_max_length": parts.model.config.transformer.max_seq_len,
        },
        "processor_config.json": {
            "processor_class": "JanusProcessor", "num_image_tokens": vision.num_tokens,
            "use_default_system_prompt": False,
        },
        "preprocessor_config.json": {
            "image_processor_type": "JanusImageProcessor", "size": size, "min_size": vision.fit.min_side,
            "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255,
        },
    }  # fmt: skip


def check_expressible(parts: ModelFolder, layout: str) -> None:
    """Check that a Janus can be what this model is.

    Raises:
        ValueError: it cannot; the reason is named.
    """
    config = parts.model.config
    refuse_unlike(config.transformer, layout, norm_position="pre", qk_norm="none")
    if config.heads != "decoupled" or config.understanding is None or config.picture_places:
        raise ValueError(
            f"the layout {layout!r} has decoupled heads, an understanding path and no learned picture places, this "
            f"model has heads {config.heads!r}, understanding {config.understanding is not None} and picture_places "
            f"{config.picture_places}; save it without a layout."
        )
    if config.understanding.merge != 1 or parts.layout.kind != "fixed":
        raise ValueError(
            f"the layout {layout!r} has a fixed grid and merge 1, this model has {parts.layout.kind!r} and "
            f"{config.understanding.merge}; save it without a layout."
        )


def write_config(parts: ModelFolder) -> dict[str, Any]:
    """Return their config.json of a model; what it came in with stays where nothing here says otherwise."""
    config, special = parts.model.config, parts.model.vocabulary.special
    came = parts.origin.config if parts.origin is not None and parts.origin.layout == NAME else {}
    vision = config.understanding
    assert vision is not None, "Janus has an understanding path"
    ids = {f"{role}_token_id": special(role) for role in ("bos", "eos", "pad")}
    text = {"model_type": "llama", **write_transformer(config.transformer, vocab_size=parts.model.num_text_rows), **ids}
    return {
        "model_type": "janus",
        "architectures": ["JanusForConditionalGeneration"],
        **came,
        "image_token_id": special("look"),
        "tie_word_embeddings": config.tie_embeddings,
        "text_config": {**came.get("text_config", {}), **text},
        "vision_config": {
            "model_type": "janus_vision_model",
            **came.get("vision_config", {}),
            "hidden_size": vision.dim, "num_hidden_layers": vision.depth, "num_attention_heads": vision.num_heads,
            "image_size": vision.image_size, "patch_size": vision.patch_size, "layer_norm_eps": vision.norm_eps,
            "mlp_ratio": vision.hidden_dim / vision.dim, "depth": vision.connector_depth,
            "projection_dim": config.transformer.dim, "num_image_tokens": vision.num_tokens,
            "hidden_act": "gelu" if vision.activation == "gelu" else "gelu_pytorch_tanh",
        },
        "vq_config": {
            "model_type": "janus_vqgan",
            **came.get("vq_config", {}),
            **write_janus_config(parts.image_tokenizer.config),
            "projection_dim": config.image_head_dim, "image_token_embed_dim": config.transformer.dim,
            "num_hidden_layers": 2,
        },
    }  # fmt: skip


LAYOUT = Layout(name=NAME, fits=lambda folder: folder.config.get("model_type") == "janus", load=load, save=save)
