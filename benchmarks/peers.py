"""What `sampling.py` is measured against: transformers' Janus and Emu3, and DeepSeek's published Janus loop.

Each family writes its model folder once, with random weights; transformers and anymodal load the same files.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anymodal.tokens.text import TextTokenizer

MAX_POSITIONS = 1024
PATCH = 4  # pixels of a code; the smallest that both image tokenizers can have, since pixels are not measured
ROLES = {"bos": "bos_token", "eos": "eos_token", "pad": "pad_token", "boi": "boi_token", "eoi": "eoi_token",
         "look": "image_token", "img": "image_wrapper_token", "eol": "eol_token", "eof": "eof_token"}  # fmt: skip
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PLAIN = ("bos_token", "eos_token", "pad_token")


@dataclass(frozen=True)
class Shape:
    """The size of a language model, and the kind of device that it is measured on."""

    dim: int
    depth: int
    num_heads: int
    hidden_dim: int
    text_size: int
    codebook_size: int
    device: str = "cpu"
    tokens: int = 64


SHAPES = {
    "toy":  Shape(32, 2, 2, 48, 300, 64, tokens=16),
    "25m":  Shape(512, 8, 8, 1376, 512, 4096),
    "150m": Shape(1024, 10, 16, 2752, 512, 16384),
    "1b":   Shape(2048, 24, 16, 5632, 102400, 16384, device="cuda", tokens=576),
    "7b":   Shape(4096, 30, 32, 11008, 102400, 16384, device="cuda", tokens=576),
}  # fmt: skip
"""The last two are the language models of Janus-Pro (arXiv:2501.17811)."""


@dataclass(frozen=True)
class Prompts:
    """Prompts of equal length, what guidance pushes away from, and the picture that follows; `ends` close it."""

    ids: Tensor
    unconditional: Tensor
    side: int
    guidance: float
    ends: tuple[int, ...]


Peer = Callable[[Any, Prompts, int | None], Tensor]
"""Sample a picture a prompt: model, prompts and seed (None takes the most likely codes) to codes or ids."""


@dataclass(frozen=True)
class Family:
    """A model that transformers has: how its folder is made, what a step reads, and who samples from it."""

    model_class: str
    config: Callable[[Shape, int, Mapping[str, int]], dict[str, Any]]
    processor: Callable[[int], dict[str, Any]]
    each_step: Callable[[Any], Sequence[nn.Module]]
    peers: Mapping[str, Peer]
    guidance: float
    logits: Callable[[Any, Prompts, Tensor], Tensor]

    def write(self, folder: Path, shape: Shape, side: int) -> None:
        """Write a folder with random weights, as transformers writes them."""
        import transformers  # noqa: PLC0415

        text = TextTokenizer.learn([""], vocab_size=256 + len(ROLES), specials=tuple(ROLES))  # a byte is a token
        config_class = getattr(transformers, self.model_class.replace("ForConditionalGeneration", "Config"))
        config = config_class(tie_word_embeddings=False, **self.config(shape, side, text.specials))
        dtype = torch.float32 if shape.device == "cpu" else torch.bfloat16
        with torch.device(shape.device):
            model = getattr(transformers, self.model_class)._from_config(config, dtype=dtype)
        spread(model)
        for name in PLAIN:
            setattr(model.generation_config, f"{name}_id", text.specials[name.removesuffix("_token")])
        model.save_pretrained(folder)
        text.save(folder / "tokenizer.json")
        named = {key: text.piece(text.specials[role]) for role, key in ROLES.items()}
        extra = {key: named[key] for key in named if key not in PLAIN}
        sides = {
            "tokenizer_config.json": {**{key: named[key] for key in PLAIN}, "extra_special_tokens": extra},
            "processor_config.json": self.processor(side),
        }
        for name, content in sides.items():
            (folder / name).write_text(json.dumps(content), encoding="utf-8")

    def load(self, folder: Path, dtype: torch.dtype, device: str) -> Any:
        """Let transformers load the folder."""
        import transformers  # noqa: PLC0415

        return getattr(transformers, self.model_class).from_pretrained(folder, dtype=dtype).to(device).eval()

    def weights_a_step(self, model: Any) -> int:
        """Count the weights that the least work for one more token reads."""
        return sum(weight.numel() for module in self.each_step(model) for weight in module.parameters())


@torch.no_grad()
def spread(model: nn.Module, seed: int = 3) -> None:
    """Draw weights whose logits differ: as transformers starts a model, all codes are nearly equally likely."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.normal_(0.0, weight[0].numel() ** -0.5, generator=generator)


def backbone(shape: Shape, vocab_size: int, specials: Mapping[str, int]) -> dict[str, Any]:
    """Return the text_config of a language model."""
    return {
        "vocab_size": vocab_size, "hidden_size": shape.dim, "intermediate_size": shape.hidden_dim,
        "num_hidden_layers": shape.depth, "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_heads, "max_position_embeddings": MAX_POSITIONS,
        **{f"{role}_token_id": specials[role] for role in ("bos", "eos", "pad")},
    }  # fmt: skip


def janus_config(shape: Shape, side: int, specials: Mapping[str, int]) -> dict[str, Any]:
    """Return the config of a Janus whose vision encoder and image tokenizer are tiny."""
    multipliers = [1, 1, 2][: int(math.log2(PATCH)) + 1]
    return {
        "text_config": {"model_type": "llama", **backbone(shape, shape.text_size, specials)},
        "vision_config": {
            "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": side * PATCH,
            "patch_size": PATCH, "projection_dim": shape.dim, "num_image_tokens": side**2, "depth": 2,
        },
        "vq_config": {
            "embed_dim": 8, "num_embeddings": shape.codebook_size, "latent_channels": 16, "base_channels": 32,
            "projection_dim": shape.dim, "channel_multiplier": multipliers, "num_res_blocks": 1,
            "image_token_embed_dim": shape.dim, "num_hidden_layers": 2,
        },
        "image_token_id": specials["look"],
    }  # fmt: skip


def emu3_config(shape: Shape, _: int, specials: Mapping[str, int]) -> dict[str, Any]:
    """Return the config of an Emu3 whose image tokenizer is tiny; its codes stand behind the text."""
    codes = {f"<|visual token {code:06d}|>": shape.text_size + code for code in range(shape.codebook_size)}
    text = backbone(shape, shape.text_size + shape.codebook_size, specials)
    return {
        "text_config": {**text, "attention_dropout": 0.0},
        "vq_config": {
            "codebook_size": shape.codebook_size, "embed_dim": 4, "latent_channels": 4, "base_channels": 32,
            "channel_multiplier": [1, 1, 2][: int(math.log2(PATCH)) + 1], "num_res_blocks": 1,
            "attn_resolutions": [], "hidden_size": 64, "num_attention_heads": 1, "temporal_downsample_factor": 1,
        },
        "vocabulary_map": {"<image>": specials["look"], "<|extra_200|>": specials["eol"], **codes},
    }  # fmt: skip


def emu3_processor(side: int) -> dict[str, Any]:
    """Return a processor_config.json that knows pictures of one area."""
    area = (side * PATCH) ** 2
    return {"image_processor": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "min_pixels": area,
                                "max_pixels": area, "spatial_factor": PATCH}}  # fmt: skip


def janus_generate(model: Any, prompts: Prompts, seed: int | None) -> Tensor:
    """Draw with transformers' `generate`; the codes come out."""
    torch.manual_seed(seed or 0)
    model.generation_config.generation_kwargs = {"boi_token_id": int(prompts.ids[0, -1])}  # files do not keep it
    return model.generate(
        prompts.ids, attention_mask=torch.ones_like(prompts.ids), generation_mode="image", do_sample=seed is not None,
        guidance_scale=prompts.guidance, use_cache=True, **_whole_distribution(seed),
    )  # fmt: skip


def janus_loop(model: Any, prompts: Prompts, seed: int | None) -> Tensor:
    """Draw as DeepSeek's generation_inference.py does; the codes come out."""
    torch.manual_seed(seed or 0)

    def choose(_: int, logits: Tensor) -> Tensor:
        conditional, unconditional = logits[0::2], logits[1::2]
        guided = unconditional + prompts.guidance * (conditional - unconditional)
        if seed is None:
            return guided.argmax(dim=-1)
        return torch.multinomial(torch.softmax(guided, dim=-1), num_samples=1)[:, 0]

    return _janus_steps(model, prompts, choose)


def janus_logits(model: Any, prompts: Prompts, codes: Tensor) -> Tensor:
    """Return the conditional logits [pictures, tokens, codes] behind given codes, token by token as in sampling."""
    seen: list[Tensor] = []

    def follow(place: int, logits: Tensor) -> Tensor:
        seen.append(logits[0::2].float())
        return codes[:, place]

    _janus_steps(model, prompts, follow)
    return torch.stack(seen, dim=1)


@torch.inference_mode()
def _janus_steps(model: Any, prompts: Prompts, choose: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Write codes with a conditional and an unconditional row a picture, which stand beside each other."""
    embedded = model.get_input_embeddings()(torch.stack((prompts.ids, prompts.unconditional), dim=1).flatten(0, 1))
    cache, codes = None, list[Tensor]()
    for place in range(prompts.side**2):
        out = model.model.language_model(inputs_embeds=embedded, use_cache=True, past_key_values=cache)
        cache = out.past_key_values
        codes.append(choose(place, model.model.generation_head(out.last_hidden_state[:, -1])))
        embedded = model.prepare_embeddings_for_image_generation(codes[-1].repeat_interleave(2)[:, None])
    return torch.stack(codes, dim=1)


def emu3_generate(model: Any, prompts: Prompts, seed: int | None) -> Tensor:
    """Draw with transformers' `generate` and the grammar of its documentation; the ids come out, to the picture's end.

    Given a negative prompt, `generate` guides by UnbatchedClassifierFreeGuidanceLogitsProcessor.
    """
    torch.manual_seed(seed or 0)
    codes, line, side = model.vocabulary_mapping.image_tokens, prompts.side + 1, prompts.side

    def allowed(_: int, ids: Tensor) -> Sequence[int]:
        place = len(ids) - prompts.ids.shape[1]
        if place < side * line:
            return [model.vocabulary_mapping.eol_token_id] if (place + 1) % line == 0 else codes
        return [prompts.ends[place - side * line]]

    return model.generate(
        prompts.ids, attention_mask=torch.ones_like(prompts.ids), do_sample=seed is not None,
        max_new_tokens=side * line + len(prompts.ends), prefix_allowed_tokens_fn=allowed,
        guidance_scale=prompts.guidance, negative_prompt_ids=prompts.unconditional,
        negative_prompt_attention_mask=torch.ones_like(prompts.unconditional), **_whole_distribution(seed),
    )[:, prompts.ids.shape[1] :]  # fmt: skip


@torch.inference_mode()
def emu3_logits(model: Any, prompts: Prompts, codes: Tensor) -> Tensor:
    """Return the logits [pictures, tokens, codes] behind given codes, token by token as in sampling."""
    image_ids = torch.tensor(model.vocabulary_mapping.image_tokens, device=codes.device)
    eol = torch.full_like(codes[:, :1], model.vocabulary_mapping.eol_token_id)
    ids, cache, seen = prompts.ids, None, list[Tensor]()
    for place in range(prompts.side**2):
        out = model(input_ids=ids, use_cache=True, past_key_values=cache, logits_to_keep=1)
        cache = out.past_key_values
        seen.append(out.logits[:, -1].float()[:, image_ids])
        ids = image_ids[codes[:, place]][:, None]
        if (place + 1) % prompts.side == 0:
            ids = torch.cat((ids, eol), dim=1)
    return torch.stack(seen, dim=1)


def _whole_distribution(seed: int | None) -> dict[str, float]:
    """Sample from all codes: by default `generate` keeps the most likely ones."""
    return {} if seed is None else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


FAMILIES = {
    "janus": Family(
        model_class="JanusForConditionalGeneration",
        config=janus_config,
        processor=lambda _: {},
        each_step=lambda model: [
            model.model.language_model.layers, model.model.language_model.norm, model.model.generation_head,
            model.model.generation_aligner,
        ],
        peers={"transformers": janus_generate, "Janus loop": janus_loop},
        guidance=5.0,
        logits=janus_logits,
    ),
    "emu3": Family(
        model_class="Emu3ForConditionalGeneration",
        config=emu3_config,
        processor=emu3_processor,
        each_step=lambda model: [model.model.text_model.layers, model.model.text_model.norm, model.lm_head],
        peers={"transformers": emu3_generate},
        guidance=3.0,
        logits=emu3_logits,
    ),
}  # fmt: skip
