"""The sampler against a loop without cache or batch: in float64 the ids of a request are its own."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from anymodal.decoding.choice import SamplingError, choose
from anymodal.decoding.config import SamplingConfig
from anymodal.decoding.engine import Request, Sampler
from anymodal.model.config import AnyModalConfig, TransformerConfig, UnderstandingConfig
from anymodal.model.unified import AnyModal
from anymodal.tokens.batch import pad
from anymodal.tokens.config import ChatTemplate, PictureLayout
from anymodal.tokens.document import Codes, DocumentEncoder, Look, TokenSequence
from anymodal.tokens.grammar import UNBOUNDED, compile_grammar
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

    def __init__(self, heads: Any = "decoupled", layout: str = "fixed") -> None:
        torch.manual_seed(0)
        transformer = TransformerConfig(
            dim=32, depth=2, num_heads=2, num_kv_heads=1, head_dim=16, hidden_dim=64, max_seq_len=96
        )
        understanding = UnderstandingConfig(image_size=16, patch_size=8, dim=8, depth=1, num_heads=2, hidden_dim=16)
        config = AnyModalConfig(transformer=transformer, understanding=understanding, heads=heads)
        self.model = AnyModal(config, VOCABULARY).double()
        for parameter in self.model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        self.layout = LAYOUTS[layout]
        self.encoder = DocumentEncoder(
            text_tokenizer=TEXT, vocabulary=VOCABULARY, layout=self.layout, template=ChatTemplate(), look_tokens=4
        )
        self.sampler = Sampler(self.model)

    def grammar(self, want: Any) -> Any:
        return compile_grammar(VOCABULARY, self.layout, want, text_tokenizer=TEXT)

    def draw(self, text: str, seed: int, **options: float) -> Request:
        return Request(
            prompt=self.encoder.prompt_image([text]),
            unconditional=self.encoder.prompt_image([""]),
            grammar=self.grammar("image"),
            image=SamplingConfig(**options),  # type: ignore[arg-type]
            seed=seed,
        )

    def redraw(self, seed: int, **options: float) -> Request:
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
        ]

    def slowly(self, request: Request) -> list[int]:
        """Write with a whole forward pass an id."""
        state, ids = request.grammar.start, list[int]()
        bounded = int(request.grammar.steps_left[state]) < UNBOUNDED
        while not bool(request.grammar.done[state]) and (bounded or len(ids) < request.max_new_tokens):
            drawing = bool(request.grammar.codes_next[state])
            logits = self.logits(request.prompt, ids, drawing)
            if drawing and request.unconditional is not None:
                plain, scale = self.logits(request.unconditional, ids, drawing), request.image.guidance_scale
                by_image = request.image.image_guidance_scale
                if by_image is None or request.pictures is None:
                    logits = plain + scale * (logits - plain)
                else:
                    seen = self.logits(request.pictures, ids, drawing)
                    logits = plain + by_image * (seen - plain) + scale * (logits - seen)
            full = torch.full((1, VOCABULARY.size), -torch.inf, dtype=torch.float64)
            full[0, VOCABULARY.table() if drawing else slice(len(logits))] = logits
            position = torch.tensor([len(request.prompt.ids) + len(ids)])
            settings, mask = request.image if drawing else request.text, request.grammar.mask(torch.tensor([state]))
            index = int(choose(full, mask, [settings], torch.tensor([request.seed]), position)[0])
            ids.append(index)
            state = int(request.grammar.advance(torch.tensor([state]), torch.tensor([index]))[0])
        return ids

    @torch.no_grad()
    def logits(self, prompt: TokenSequence, ids: list[int], drawing: bool) -> torch.Tensor:
        grown = torch.cat((prompt.ids, torch.tensor(ids, dtype=torch.long)))
        batch = pad([TokenSequence(grown, torch.zeros(len(grown), dtype=torch.bool), prompt.looks)], 0, 4)
        if batch.look_pixels is not None:
            batch.look_pixels = batch.look_pixels.double()
        out = self.model.eval()(batch)
        return (out.image_logits if drawing else out.logits)[0, -1]


@pytest.mark.parametrize("layout", ["fixed", "rows"])
@pytest.mark.parametrize("heads", ["shared", "decoupled"])
def test_ids_are_those_of_a_slow_loop_in_any_batch(heads: str, layout: str) -> None:
    setup = Setup(heads, layout)
    requests = setup.requests()
    slow = [setup.slowly(request) for request in requests]
    together = setup.sampler.generate(requests)
    assert [ids.tolist() for ids in together] == slow
    turned = setup.sampler.generate(requests[::-1])
    assert [ids.tolist() for ids in turned] == slow[::-1]
    for request, expected in zip(requests, slow, strict=True):
        assert setup.sampler.generate([request])[0].tolist() == expected
    for request, ids in zip(requests, together, strict=True):
        state = request.grammar.check(ids)
        assert bool(request.grammar.done[state]) or len(ids) == request.max_new_tokens


@pytest.mark.parametrize("layout", ["fixed", "rows"])
def test_every_picture_is_a_whole_grid(layout: str) -> None:
    setup = Setup("shared", layout)
    requests = [setup.draw("dog", seed, temperature=3.0, guidance_scale=1.0 + seed % 3) for seed in range(70)]
    steps: list[int] = []
    results = setup.sampler.generate(requests, steps.append)
    shapes = set()
    for ids in results:
        (part,) = setup.encoder.decode(ids)
        assert isinstance(part, Codes)
        shapes.add(tuple(part.picture.shape))  # type: ignore[union-attr]
    assert shapes == set(setup.layout.sizes)
    assert len({tuple(ids.tolist()) for ids in results}) == 70
    assert steps[0] == 0


def test_sampling_leaves_the_mode_as_it_was() -> None:
    setup = Setup()
    setup.model.train()
    first = setup.sampler.generate([setup.write("a", 1)])
    assert setup.model.training
    assert first[0].dtype == torch.long
    assert setup.sampler.generate([]) == []
    assert setup.sampler.generate([replace(setup.write("a", 1), max_new_tokens=0), setup.write("a", 1)])[0].numel() == 0


def test_stops_behind_a_stop_id() -> None:
    setup = Setup()
    request = setup.write("a", 1)
    ids = setup.sampler.generate([request])[0].tolist()
    stopped = setup.sampler.generate([replace(request, stop_ids=frozenset({ids[3]}))])[0].tolist()
    assert stopped == ids[: ids.index(ids[3]) + 1]


def test_broken_weights_and_long_prompts_are_named() -> None:
    setup = Setup()
    with pytest.raises(ValueError, match=r"prompt has \d+ tokens and 13 are to follow, the context holds 96"):
        setup.sampler.generate([setup.draw("x" * 90, 0)])
    with pytest.raises(ValueError, match="the context holds 96; shorten the prompt"):
        long = setup.encoder.prompt_image(["x" * 90])
        setup.sampler.generate([replace(setup.draw("a", 0, guidance_scale=2.0), unconditional=long)])
    with torch.no_grad():
        list(setup.model.image_head.parameters())[-2][3] = torch.nan
    for scale in (1.0, 2.0):
        with pytest.raises(SamplingError, match="row 0 hold not numbers"):
            setup.sampler.generate([setup.draw("a", 0, guidance_scale=scale)])
