"""What tiny published folders are made of."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = ("a red apple left of a dog", "What is this? User: Assistant: How many things are there? 0123456789*") * 8


@pytest.fixture(scope="session")
def fast_tokenizer() -> Callable[..., Any]:
    """Make a byte-level BPE as transformers keeps it: first the special `tokens`, last the `late` ones."""

    def make(
        tokens: Sequence[str], extra: Mapping[str, str], vocab_size: int, late: Sequence[str] = (), **named: str
    ) -> Any:
        from transformers import PreTrainedTokenizerFast

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(tokens), initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(TEXTS, trainer)
        tokenizer.add_special_tokens(list(late))
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=dict(extra), **named)

    return make


@pytest.fixture(scope="session")
def parity() -> Callable[[str], ModuleType]:
    """Give the parity tests of a layout, whose tiny models other tests use: "janus" for test_janus.py."""

    def load(layout: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"parity_{layout}", Path(__file__).with_name(f"test_{layout}.py"))
        assert spec is not None and spec.loader is not None  # noqa: PT018
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def spread() -> Callable[[torch.nn.Module, int], None]:
    """Give a tiny model weights whose outputs differ: as transformers starts it, all logits are nearly equal."""

    def change(model: torch.nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim > 1:
                    parameter.copy_(noise / parameter[0].numel() ** 0.5)
                else:
                    parameter.add_(noise * 0.1)

    return change


@pytest.fixture(scope="session")
def noise_picture() -> Callable[..., Image.Image]:
    """Make a picture of noise: height and width, and a seed."""

    def make(seed: int = 0, height: int = 32, width: int = 32) -> Image.Image:
        values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(values)

    return make
