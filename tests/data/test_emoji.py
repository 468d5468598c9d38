import json

import numpy as np
import pytest

from anymodal.data.emoji import concepts, emoji_samples, find_concept, picture, scene_names, split_of_concept
from anymodal.data.pictures import decode_picture


def test_concepts_are_distinct_and_clean() -> None:
    found = concepts()
    assert len(found) == 1897  # 1,911 base emoji, 25 of them in 11 groups of one picture each
    assert len({concept.name for concept in found}) == len({concept.code for concept in found}) == len(found)
    assert all(concept.name == concept.name.lower().strip() for concept in found)
    assert {concept.group for concept in found} >= {"animals and nature", "food and drink", "flags"}


def test_identical_pictures_are_one_concept() -> None:
    assert find_concept("flag of norway").aliases == ("flag of bouvet island", "flag of svalbard and jan mayen")
    with pytest.raises(ValueError, match="flag of norway"):
        find_concept("flag of norwa")


def test_pictures_are_all_different() -> None:
    pictures = [picture(concept) for concept in concepts()]
    assert {(image.mode, image.size) for image in pictures} == {("RGBA", (64, 64))}
    assert len({image.tobytes() for image in pictures}) == len(pictures)


def test_scene_names_are_concepts_with_an_article() -> None:
    names = scene_names()
    assert len(set(names)) == len(names) >= 150
    assert all(find_concept(name).with_article.endswith(f" {name}") for name in names)
    assert max(len(name.split()) for name in names) <= 2


def test_split_is_by_concept_and_spares_scenes() -> None:
    held_out = [concept for concept in concepts() if split_of_concept(concept) == "held-out"]
    assert 0.03 < len(held_out) / len(concepts()) < 0.07
    assert not {concept.name for concept in held_out} & set(scene_names())
    assert split_of_concept(find_concept("deer")) == "held-out"  # golden: the hash must not move


def test_emoji_samples() -> None:
    train = {sample.key for sample in emoji_samples("train", concepts=["dog", "deer"])}
    (held_out,) = emoji_samples("held-out", concepts=["dog", "deer"])
    assert train == {"emoji-1f436"}
    assert held_out.key == "emoji-1f98c"
    assert held_out.members["txt"] == b"a deer"
    assert json.loads(held_out.members["json"])["captions"][:2] == ["deer", "a deer"]
    pixels = np.asarray(decode_picture(held_out.members["png"])).astype(int)
    rgba = np.asarray(picture("deer")).astype(float)
    on_white = rgba[..., :3] * rgba[..., 3:] / 255 + 255 - rgba[..., 3:]
    assert np.abs(pixels - on_white).max() <= 1


def test_emoji_samples_scale() -> None:
    (sample,) = emoji_samples("train", concepts=["dog"], size=32)
    assert decode_picture(sample.members["png"]).size == (32, 32)
    with pytest.raises(ValueError, match="size must be"):
        next(emoji_samples("train", size=2))
