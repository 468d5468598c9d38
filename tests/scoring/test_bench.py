from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anymodal.data.emoji import concepts, split_of_concept
from anymodal.pipeline import Pipeline, from_pretrained
from anymodal.scoring import features
from anymodal.scoring.bench import BENCHES, BenchConfig, Table

CONFIG = BenchConfig(concepts=6, names="scenes", count=4, seed=2)


@pytest.fixture(scope="module")
def pipe(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("scored") / "model"
    toy.parts().save(folder)
    return from_pretrained(folder, dtype="float32")


@pytest.fixture(autouse=True)
def _no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "is_installed", lambda: False)
    monkeypatch.setattr("anymodal.scoring.reconstruction.is_installed", lambda: False)


def run(name: str, pipe: Pipeline, config: BenchConfig = CONFIG) -> list[Table]:
    return BENCHES[name].run(pipe, config)


def rows(tables: Sequence[Table]) -> dict[str, list[str]]:
    return {table.title: [score.name for score in table.scores] for table in tables}


def test_the_tokenizer_is_scored_at_every_side(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anymodal.scoring.bench.SIDES", (31, 32, 48))
    tables = run("tokenizer", pipe)
    assert [table.title.rpartition(", ")[2] for table in tables] == ["32 pixels", "32 pixels", "48 pixels"]
    assert {name for names in rows(tables).values() for name in names} == {
        "PSNR", "SSIM", "codes used", "perplexity of the codes",
    }  # fmt: skip
    assert {score.count for table in tables for score in table.scores if "scenes" in table.title} == {4}


def test_drawings_stand_beside_chance_ceiling_and_the_checker(pipe: Pipeline) -> None:
    trained, unseen = run("names", pipe)
    assert [score.chance for score in trained.scores] == [1 / 6, 1 / len(concepts())]
    assert (trained.scores[0].count, unseen.scores[0].count) == (3, 4)
    checker, scenes = run("scenes", pipe)
    assert checker.scores[0].value == 1.0
    assert scenes.scores[0].name == "every kind: all of it right"
    assert scenes.failures is not None
    assert len(scenes.failures) == round(4 * (1 - scenes.scores[0].value))


def test_names_may_be_all_of_the_training_split() -> None:
    learned = BenchConfig().learned
    assert len(learned) == len(concepts()) - sum(split_of_concept(each) == "held-out" for each in concepts())
    assert set(BenchConfig(names="scenes").learned) <= set(learned)


def test_all_names_stand_beside_those_of_the_scenes(pipe: Pipeline) -> None:
    everything = BenchConfig(concepts=6, count=3)
    assert list(rows(run("names", pipe, everything))) == [
        "names, of the scenes",
        "names, trained",
        "names, never trained",
    ]
    of_scenes, trained = run("keywords", pipe, everything)
    assert of_scenes.title == "other names and keywords, of the scenes"
    assert trained.title == "other names and keywords, trained"
    assert [score.name.partition(":")[0] for score in trained.scores] == [
        "another name", "name and keywords", "keywords alone, as no caption",
    ]  # fmt: skip
    assert {score.count for score in trained.scores} == {3}


def test_drawings_follow_the_seed(pipe: Pipeline) -> None:
    def shown(seed: int) -> list[bytes]:
        table, *_ = run("names", pipe, BenchConfig(concepts=6, names="scenes", count=6, seed=seed))
        return [failure.drawn.tobytes() for failure in table.failures or ()]

    assert shown(3) == shown(3) != shown(4)


def test_the_same_seed_gives_the_same_numbers(pipe: Pipeline) -> None:
    few = BenchConfig(concepts=6, names="scenes", count=2)
    first, second = (run("answers", pipe, few) for _ in range(2))
    assert first == second
    assert list(rows(first)) == ["questions about held-out scenes", "questions about concepts never trained"]
    assert all(score.blind is not None for score in first[0].scores if not score.name.startswith("blind"))
    drawn = [run("scenes", pipe, few) for _ in range(2)]
    assert [table.scores for table in drawn[0]] == [table.scores for table in drawn[1]]


def test_benches_outside_the_domain_say_so(pipe: Pipeline, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "dog.png")
    (tmp_path / "dog.txt").write_text("A dog.", encoding="utf-8")
    for name, config in (("easy-vqa", CONFIG), ("stamps", BenchConfig(count=4, data=tmp_path))):
        (table,) = run(name, pipe, config)
        assert "out of domain" in table.title
        assert BENCHES[name].optional
    with pytest.raises(FileNotFoundError, match="must hold stamps"):
        run("stamps", pipe, BenchConfig(data=tmp_path / "nowhere"))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="from 2 to"):
        BenchConfig(concepts=1)
    with pytest.raises(ValueError, match="at least 2"):
        BenchConfig(count=1)
