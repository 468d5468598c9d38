import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anymodal.pipeline import Pipeline
from anymodal.scoring.public.geneval import draw_geneval, score_geneval

PROMPTS = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "counting", "include": [{"class": "cow", "count": 2}], "prompt": "a photo of two cows"},
    {"tag": "counting", "include": [{"class": "cow", "count": 3}], "prompt": "a photo of three cows"},
]


class Painter(Pipeline):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def generate_image(self, prompt: Any, *, seed: Any = 0, **_: Any) -> list[Image.Image]:
        self.seen += [(text, seed) for text in prompt]
        return [Image.new("RGB", (4, 4)) for _ in prompt]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "prompts").mkdir()
    lines = "".join(json.dumps(prompt) + "\n" for prompt in PROMPTS)
    (tmp_path / "prompts" / "evaluation_metadata.jsonl").write_text(lines)
    return tmp_path / "prompts"


def test_pictures_stand_as_the_evaluator_reads_them(tmp_path: Path, prompts: Path) -> None:
    pipe, out = Painter(), tmp_path / "out"
    paths = draw_geneval(pipe, prompts, out, seed=5)
    assert len(paths) == len(pipe.seen) == 12
    assert pipe.seen[:4] == [("a photo of a bench", 5), ("a photo of two cows", 5), ("a photo of three cows", 5),
                             ("a photo of a bench", 6)]  # fmt: skip
    for number, folder in enumerate(sorted(out.iterdir())):
        assert folder.name == f"{number:05}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == PROMPTS[number]
        assert sorted(path.name for path in (folder / "samples").iterdir()) == [f"{i:04}.png" for i in range(4)]
    (out / "00001" / "samples" / "0002.png").unlink()
    draw_geneval(pipe, prompts, out, seed=5)
    assert pipe.seen[12:] == [("a photo of two cows", 7)]


def test_a_limit_keeps_the_numbers_of_its_prompts(tmp_path: Path, prompts: Path) -> None:
    draw_geneval(Painter(), prompts / "evaluation_metadata.jsonl", tmp_path / "out", limit=2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000", "00001"]


def verdict(number: int, correct: Any) -> str:
    metadata = PROMPTS[number]
    line = {"filename": "a.png", "tag": metadata["tag"], "prompt": metadata["prompt"], "correct": correct,
            "reason": "", "metadata": json.dumps(metadata), "details": "{}"}  # fmt: skip
    return json.dumps(line) + "\n"


def test_verdicts_by_hand(tmp_path: Path) -> None:
    judged = [(0, True), (0, False), (1, True), (1, False), (2, False), (2, False)]
    (tmp_path / "results.jsonl").write_text("".join(verdict(*each) for each in judged))
    scores = score_geneval(tmp_path / "results.jsonl")
    assert [(each.name, each.value, each.count) for each in scores] == [
        ("overall, mean of the tags", (1 / 2 + 1 / 4) / 2, 6),
        ("single_object", 1 / 2, 2),
        ("counting", 1 / 4, 4),
        ("pictures", 2 / 6, 6),
        ("prompts, one right at least", 2 / 3, 3),
    ]


@pytest.mark.parametrize(("text", "message"), [("", "must hold a verdict a line"), (verdict(0, "yes"), "line 1 must")])
def test_broken_verdicts_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        score_geneval(tmp_path / "results.jsonl")
