"""A random model in float64, requests to it, and a loop without cache or batch that says what they must give."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from anymodal.decoding.choice import Settings, choose
from anymodal.decoding.config import EngineConfig, SamplingConfig
from anymodal.decoding.native import COMPILERS, has_kernel, load_kernel
from anymodal.decoding.request import Guides, Request
from anymodal.decoding.sampler import Sampler
from anymodal.model.config import AnyModalConfig, TransformerConfig, UnderstandingConfig
from anymodal.model.unified import AnyModal
from anymodal.tokens.batch import pad
from anymodal.tokens.config import ChatTemplate, PictureLayout
from anymodal.tokens.document import DocumentEncoder, Look, TokenSequence
from anymodal.tokens.grammar import compile_grammar
from anymodal.tokens.text import TextTokenizer
from anymodal.tokens.vocabulary import Vocabulary

TEXT = TextTokenizer.learn(["a red apple and a dog"], vocab_size=280)
VOCABULARY = Vocabulary.build(text_size=TEXT.vocab_size, specials=TEXT.specials, codebook_size=16)
LAYOUTS = {
    "fixed": PictureLayout(sizes=((3, 4),)),
    "rows": PictureLayout(kind="rows", sizes=((2, 3), (3, 2), (1, 4))),
}


class Setup:
    """A random model in float64 and requests to it."""

    def __init__(self, heads: Any = "decoupled", layout: str = "fixed", dtype: Any = torch.float64) -> None:
        torch.manual_seed(0)
        transformer = TransformerConfig(
            dim=32, depth=2, num_heads=2, num_kv_heads=1, head_dim=16, hidden_dim=64, max_seq_len=96
        )
        understanding = UnderstandingConfig(image_size=16, patch_size=8, dim=8, depth=1, num_heads=2, hidden_dim=16)
        config = AnyModalConfig(transformer=transformer, understanding=understanding, heads=heads, picture_places=6)
        self.model = AnyModal(config, VOCABULARY).to(dtype)
        for parameter in self.model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        self.layout = LAYOUTS[layout]
        self.encoder = DocumentEncoder(
            text_tokenizer=TEXT, vocabulary=VOCABULARY, layout=self.layout, template=ChatTemplate(), look_tokens=4
        )
        self.sampler = Sampler(self.model)
        self.grammar = cache(lambda want: compile_grammar(VOCABULARY, self.layout, want, text_tokenizer=TEXT))
        class_of = self.grammar("any").class_of.clone()
        letters = torch.tensor(TEXT.encode("xyz"))
        digits = torch.tensor(TEXT.encode("0123456789*"))
        class_of[torch.isin(class_of, class_of[letters]) & ~torch.isin(torch.arange(len(class_of)), letters)] = 0
        class_of[digits] = self.grammar("any").class_of[digits]
        class_of[VOCABULARY.special("eos")] = 0
        self.few_words = replace(self.grammar("any"), class_of=class_of)

    def generate(self, requests: list[Request], **config: Any) -> list[list[int]]:
        return [ids.tolist() for ids in Sampler(self.model, EngineConfig(**config)).generate(requests)]

    def draw(self, text: str, seed: int, **options: Any) -> Request:
        return Request(
            prompt=self.encoder.prompt_image([text]),
            unconditional=self.encoder.prompt_image([""]),
            grammar=self.grammar("image"),
            image=SamplingConfig(**options),
            seed=seed,
        )

    def redraw(self, seed: int, **options: Any) -> Request:
        seen = torch.linspace(-1, 1, 768).view(3, 16, 16)
        prompt = self.encoder.prompt_image([Look(seen), "a dog", Look(-seen)])
        alone = self.encoder.pictures_alone(prompt)
        return replace(self.draw("", seed, **options), prompt=prompt, pictures=alone)

    def write(self, text: str, seed: int, want: str = "text", look: bool = False) -> Request:
        picture = [Look(torch.linspace(-1, 1, 768).view(3, 16, 16))] if look else []
        prompt = self.encoder.encode([*picture, text], complete=False)
        return Request(prompt=prompt, grammar=self.grammar(want), seed=seed, max_new_tokens=20)

    def requests(self) -> list[Request]:
        return [
            self.draw("a dog", 1, guidance_scale=3.0, top_k=9),
            self.write("what is it?", 2, look=True),
            self.draw("a red apple and a dog", 3),
            self.draw("apple", 4, guidance_scale=2.0, top_p=0.8, temperature=0.7),
            self.write("a", 5, want="any"),
            self.draw("dog", 6, temperature=0.0),
            self.redraw(8, guidance_scale=3.0, image_guidance_scale=1.2),
            self.redraw(9, guidance_scale=1.0, image_guidance_scale=2.0, temperature=0.5),
            replace(self.write("and", 7), max_new_tokens=3),
            self.illustrate("a dog", 10, max_new_tokens=16, max_images=1),
            self.illustrate("a red dog", 12, by_image=1.5),
            self.draw("red", 11, guidance_scale=4.0, guidance_interval=(0.25, 0.75)),
        ]

    def illustrate(self, text: str, seed: int, **options: Any) -> Request:
        """Ask for text and pictures, of which the model likes to begin many."""
        request = self.write(text, seed, want="any")

        def guides(sequence: TokenSequence) -> Guides:
            return Guides(self.encoder.prompt_image([""]), self.encoder.pictures_alone(sequence))

        image = SamplingConfig(guidance_scale=3.0, image_guidance_scale=options.pop("by_image", None))
        longest = int(self.grammar("image").steps_left[self.grammar("image").start])
        chosen: dict[str, Any] = {
            "grammar": self.few_words,
            "guides": guides,
            "image": image,
            "picture_tokens": longest,
        }
        return replace(request, **chosen, text=SamplingConfig(temperature=9.0), **options)

    def slowly(self, request: Request) -> list[int]:
        """Write with a whole forward pass an id."""
        state, ids = request.grammar.start, list[int]()
        boi, eoi = VOCABULARY.special("boi"), VOCABULARY.special("eoi")
        drawing_since: int | None = 0 if request.bounded else None
        texts, pictures, beside = 0, 0, (request.unconditional, request.pictures, 0)
        while not bool(request.grammar.done[state]):
            room = 96 - len(request.prompt.ids) - len(ids)
            if drawing_since is None and (texts >= request.max_new_tokens or room <= 0):
                break
            codes = bool(request.grammar.codes_next[state])
            logits = self.logits(request.prompt, ids, codes)
            if codes and request.guided:
                logits = self.guided(request, logits, ids, beside, drawing_since or 0)
            mask = request.grammar.mask(torch.tensor([state]))
            if request.max_images == pictures or room <= request.picture_tokens:
                mask[0, boi] = False
            index = self.choose(request, logits, codes, mask, len(ids))
            texts += drawing_since is None
            ids.append(index)
            if index == boi and not request.bounded:
                drawing_since, pictures = len(ids), pictures + 1
                if request.guides is not None:
                    grown = torch.cat((request.prompt.ids, torch.tensor(ids)))
                    prompt = TokenSequence(grown, torch.zeros(len(grown), dtype=torch.bool), request.prompt.looks)
                    beside = (*request.guides(prompt), len(ids))
            elif index == eoi and not request.bounded:
                drawing_since = None
            state = int(request.grammar.advance(torch.tensor([state]), torch.tensor([index]))[0])
        return ids

    def guided(
        self, request: Request, logits: Tensor, ids: list[int], beside: tuple[Any, Any, int], since: int
    ) -> Tensor:
        """Compare with what the other prompts give."""
        unconditional, pictures, start = beside
        total = request.longest if request.bounded else request.picture_tokens
        first, last = (since + round(share * total) for share in request.image.guidance_interval)
        if not first <= len(ids) < last:
            return logits
        plain, scale = self.logits(unconditional, ids[start:], True), request.image.guidance_scale
        by_image = request.image.image_guidance_scale
        if by_image is None or pictures is None:
            return plain + scale * (logits - plain)
        seen = self.logits(pictures, ids[start:], True)
        return plain + by_image * (seen - plain) + scale * (logits - seen)

    def choose(self, request: Request, logits: Tensor, codes: bool, mask: Tensor, count: int) -> int:
        """Choose an id over the whole vocabulary."""
        full = torch.full((1, VOCABULARY.size), -torch.inf, dtype=torch.float64)
        full[0, VOCABULARY.table() if codes else slice(len(logits))] = logits
        position = torch.tensor([len(request.prompt.ids) + count])
        settings = Settings.of([request.image if codes else request.text])
        where: dict[str, Any] = {"seeds": torch.tensor([request.seed]), "positions": position, "allowed": mask}
        return int(choose(full, settings, ids=torch.arange(VOCABULARY.size), **where).ids[0])

    @torch.no_grad()
    def logits(self, prompt: TokenSequence, ids: list[int], drawing: bool) -> Tensor:
        """Score what comes next."""
        grown = torch.cat((prompt.ids, torch.tensor(ids, dtype=torch.long)))
        batch = pad([TokenSequence(grown, torch.zeros(len(grown), dtype=torch.bool), prompt.looks)], 0, 4)
        if batch.look_pixels is not None:
            batch.look_pixels = batch.look_pixels.double()
        out = self.model.eval()(batch)
        return (out.image_logits if drawing else out.logits)[0, -1]


@pytest.fixture(scope="session")
def make_setup() -> Callable[..., Setup]:
    """Make a setup of (heads, layout, dtype); the same one for the same."""
    return cache(Setup)


@pytest.fixture(scope="module")
def kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the native kernel in a folder of the test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        forget_kernel()
        yield
    forget_kernel()


def forget_kernel() -> None:
    load_kernel.cache_clear()
    has_kernel.cache_clear()


@pytest.fixture
def compiler(request: pytest.FixtureRequest, kernel_folder: None) -> None:
    """Run a test that is asked for the native kernel where there is a compiler; elsewhere see that this is said."""
    native = not hasattr(request.node, "callspec") or request.node.callspec.params.get("native", True)
    if native and not any(map(shutil.which, COMPILERS)):
        with pytest.raises(ValueError, match="needs a C compiler"):
            load_kernel()
        pytest.skip("there is no C compiler")


@pytest.fixture(params=["tiles", "vectors"])
def unit(request: pytest.FixtureRequest, compiler: None) -> Iterator[None]:
    """Multiply by tiles, where this machine has a matrix unit, and by vectors."""
    kernel = load_kernel()
    found = kernel.use_tiles(int(request.param == "tiles"))
    assert found in ((0,) if request.param == "vectors" else (0, 1))
    yield
    kernel.use_tiles(1)
