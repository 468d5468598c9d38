from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anymodal.data.emoji import picture
from anymodal.decoding import native
from anymodal.pipeline import Pipeline, from_pretrained
from anymodal.tokens.document import Codes, Draw, Look

IMAGE = picture("dog").convert("RGB")


@pytest.fixture(scope="module")
def pipe(toy: Any) -> Pipeline:
    return Pipeline(toy.parts(heads="decoupled"))


def same(one: Image.Image, other: Image.Image) -> bool:
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))


def test_every_prompt_may_have_its_own_seed(pipe: Pipeline) -> None:
    both = pipe.generate_image(["a dog", "a cat"], num_images=2, seed=[3, 8], top_k=8)
    alone = pipe.generate_image("a dog", num_images=2, seed=3, top_k=8)
    alone += pipe.generate_image("a cat", num_images=2, seed=8, top_k=8)
    assert all(same(one, other) for one, other in zip(both, alone, strict=True))
    with pytest.raises(ValueError, match="one seed a prompt, got 1 seeds and 2 prompts"):
        pipe.generate_image(["a dog", "a cat"], seed=[3])


def test_pictures_are_drawn_by_seed(pipe: Pipeline) -> None:
    images = pipe.generate_image(["a dog", "a cat"], num_images=2, seed=3, guidance_scale=2.0, top_k=8)
    assert [image.size for image in images] == [(16, 16)] * 4
    assert pipe.usage.tokens == 4 * 17
    assert pipe.usage.tokens_per_second > 0
    (alone,) = pipe.generate_image("a cat", seed=4, guidance_scale=2.0, top_k=8)
    assert same(alone, images[3])
    assert not same(images[2], images[3])
    (negative,) = pipe.generate_image("a cat", seed=4, guidance_scale=2.0, top_k=8, negative_prompt="a dog")
    assert negative.size == (16, 16)
    with pytest.raises(ValueError, match="draws pictures of 16 x 16 pixels .*, not 32 x 16"):
        pipe.generate_image("a dog", height=32)
    with pytest.raises(ValueError, match="shorten the prompt"):
        pipe.generate_image("x" * 600)


def test_the_best_of_drawings_is_the_one_that_is_told_from_best(pipe: Pipeline) -> None:
    tries = [pipe.generate_image("a cat", seed=5 + j * 2**32, top_k=8)[0] for j in range(4)]
    told = [pipe.log_likelihood([image, "Describe this picture."], "a cat") for image in tries]
    best = max(range(4), key=told.__getitem__)
    assert len(set(told)) == 4
    assert best > 0, "the seed must make another than the plain drawing the best, or this shows nothing"
    images = pipe.generate_image(["a dog", "a cat"], num_images=2, best_of=4, seed=4, top_k=8)
    assert len(images) == 4
    assert same(images[3], tries[best])
    (plain,) = pipe.generate_image("a cat", seed=5, top_k=8, best_of=1)
    assert same(plain, tries[0])
    kept = Pipeline(replace(pipe.parts, generation={"best_of": 4}))
    assert same(kept.generate_image("a cat", seed=5, top_k=8)[0], tries[best])
    with pytest.raises(ValueError, match="best_of must be at least 1, got 0; 1 draws a picture once"):
        pipe.generate_image("a cat", best_of=0)


def test_a_model_that_reads_codes_tells_its_drawings_from_the_codes_that_it_wrote(toy: Any) -> None:
    pipe = Pipeline(toy.parts(heads="shared", understanding=None))
    requests = [
        pipe.prompter.request(["a cat"], {"want": "image", "top_k": 8, "seed": 5 + j * 2**32}) for j in range(4)
    ]
    codes = [pipe.prompter.codes_of(ids) for ids in pipe.sampler.generate(requests)]
    told = [pipe.log_likelihood([Look(each), "Describe this picture."], "a cat") for each in codes]
    best = told.index(max(told))
    assert best > 0, "the seed must make another than the plain drawing the best, or this shows nothing"
    drawn = pipe.generate_image("a cat", seed=5, top_k=8, best_of=4)[0]
    assert same(drawn, pipe.prompter.decode_picture(codes[best]))


def test_a_model_that_learns_judges_without_dropout(toy: Any) -> None:
    pipe = Pipeline(toy.parts(dropout=0.5))
    pipe.model.train()
    told = {pipe.log_likelihood([IMAGE, "What is it?"], "a dog") for _ in range(3)}
    assert len(told) == 1
    assert pipe.model.training


def test_answers_are_one_a_question(pipe: Pipeline) -> None:
    one = pipe.answer(IMAGE, "What is it?", max_new_tokens=5)
    assert isinstance(one, str)
    assert pipe.answer([IMAGE, IMAGE], ["What is it?", "Is it red?"], max_new_tokens=5)[0] == one
    with pytest.raises(ValueError, match="one picture a question, got 1 pictures and 2 questions"):
        pipe.answer([IMAGE], ["a", "b"])


def test_documents_are_continued(pipe: Pipeline) -> None:
    (image,) = pipe.generate([IMAGE, "The same, but blue:"], want="image", seed=0)
    assert isinstance(image, Image.Image)
    assert all(isinstance(part, str) for part in pipe.generate(["a dog"], want="text", max_new_tokens=4))
    parts = pipe.generate(["a dog"], max_new_tokens=60, temperature=3.0, max_images=1)
    assert sum(isinstance(part, Image.Image) for part in parts) <= 1


@pytest.mark.parametrize("changes", [{}, {"understanding": None}, {"heads": "decoupled"}])
def test_likelihoods_of_all_choices_add_up(toy: Any, changes: dict[str, Any]) -> None:
    parts = toy.parts(**changes)
    pipe = Pipeline(parts)
    target = " a dog"
    value = pipe.log_likelihood([IMAGE, "What is it?"], target)
    look = Look(pipe.prompter.resolve([IMAGE])[0].picture)
    prompt = pipe.encoder.encode([look, "What is it?"], complete=False)
    ids = torch.tensor(parts.text_tokenizer.encode(target))
    total = 0.0
    grown = prompt.ids
    for index in ids:
        batch = pipe._batch([type(prompt)(grown, torch.zeros(len(grown), dtype=torch.bool), prompt.looks)])
        with torch.no_grad():
            total += float(parts.model(batch).logits[0, -1].log_softmax(-1)[index])
        grown = torch.cat((grown, index[None]))
    assert value == pytest.approx(total, abs=1e-4)
    codes = Draw(torch.zeros(4, 4, dtype=torch.long))
    assert pipe.log_likelihood(["a dog"], codes) < 0
    wanted: list[str | Draw] = [" a red dog", target, codes]
    alone = [pipe.log_likelihood([IMAGE, "What is it?"], each) for each in wanted]
    assert pipe.log_likelihoods([IMAGE, "What is it?"], wanted) == pytest.approx(alone, abs=1e-4)
    with pytest.raises(ValueError, match="give one target or more"):
        pipe.log_likelihoods([IMAGE], [])


def test_batches_are_prepared(pipe: Pipeline) -> None:
    batch = pipe.prepare([["a red apple", Draw(IMAGE)], [IMAGE, "What is this?", " an apple"]])
    losses = pipe.model(batch).losses
    assert int(losses["image"].count) == 16
    assert batch.look_pixels is not None
    assert batch.look_pixels.shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="needs a target"):
        pipe.prepare([[IMAGE]])


def test_reconstruction_is_the_image_tokenizers(pipe: Pipeline) -> None:
    (image,) = pipe.reconstruct([IMAGE])
    codes = pipe.prompter.resolve([Codes(IMAGE)])[0].picture
    assert same(image, pipe.prompter.decode_picture(codes))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int8"])
def test_a_saved_pipeline_is_loaded(toy: Any, pipe: Pipeline, tmp_path: Path, dtype: str) -> None:
    pipe.save_pretrained(tmp_path / "model")
    again = from_pretrained(tmp_path / "model", device="cpu", dtype=dtype)
    assert again.model.get_submodule("transformer.blocks.0.attention.o_proj").weight.dtype == getattr(torch, dtype)
    light = dtype in ("bfloat16", "int8")
    assert again.model.embedding.weight.dtype == (torch.float32 if light else getattr(torch, dtype))
    assert again.generation == pipe.generation
    (image,) = again.generate_image("a dog", seed=1)
    if dtype == "float32":
        assert same(image, pipe.generate_image("a dog", seed=1)[0])
    assert isinstance(again.answer(IMAGE, "What is it?", max_new_tokens=3), str)
    again.save_pretrained(tmp_path / "again")  # what was rounded is saved as it was
    wide = torch.float64 if dtype == "float64" else torch.float32
    weights = from_pretrained(tmp_path / "again", device="cpu", dtype="stored").model.state_dict()
    for name, weight in pipe.model.state_dict().items():
        assert torch.equal(weights[name], weight.to(wide)), name
    if light:
        with pytest.raises(ValueError, match="these weights are rounded for sampling; save the model before"):
            Pipeline(again.parts).save_pretrained(tmp_path / "none")


def test_native_kernel_samples_where_it_can(
    toy: Any, pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.save_pretrained(tmp_path / "model")

    def stack(**options: Any) -> object:
        return from_pretrained(tmp_path / "model", device="cpu", **options).model.transformer.stack

    for built in (True, False):
        monkeypatch.setattr("anymodal.pipeline.has_kernel", lambda built=built: built and native.has_kernel())
        there = built and native.has_kernel()
        for dtype in ("float32", "bfloat16", "int8"):
            assert (stack(dtype=dtype) is not None) == there
            assert stack(dtype=dtype, native=False) is None
        assert stack(dtype="float64") is stack(dtype="stored") is None
    monkeypatch.undo()
    if native.has_kernel():
        again = from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
        again.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
            tmp_path / "model" / "model.safetensors"
        ).read_bytes()
    native.load_kernel.cache_clear()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="needs a C compiler"):
        stack(dtype="float32", native=True)
    native.load_kernel.cache_clear()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no model 'emojy'"):
        from_pretrained("emojy")
    with pytest.raises(ValueError, match="is no model folder that is known here: it holds no config.json"):
        from_pretrained(tmp_path, allow_pickle=True)
    with pytest.raises(ValueError, match="dtype must be one of"):
        from_pretrained(tmp_path, dtype="int3")
    with pytest.raises(ValueError, match="int8 weights are for sampling on a CPU, not on cuda"):
        from_pretrained(tmp_path, dtype="int8", device="cuda")
    with pytest.raises(ValueError, match="native kernel multiplies float32, bfloat16 and int8 on a CPU"):
        from_pretrained(tmp_path, dtype="float64", native=True)
