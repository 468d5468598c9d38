import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from anymodal.scoring.charts import Curve
from anymodal.scoring.report import Answered, Drawing, Report, Score, Stage, save_report, write_page

VOID = {"meta", "img", "br", "line", "polyline"}
RED = Image.new("RGB", (4, 4), "red")


class Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def report() -> Report:
    return Report(
        title="A <run>",
        lead="From nothing.",
        drawings=(
            Drawing("a dog", RED, RED, RED, memorised=True, right=True),
            Drawing("two dogs on a <blue> tile", RED, RED, RED, memorised=False, right=False),
        ),
        answers=(Answered(RED, "What is this?", "a cat", "a dog", right=False),),
        scores={"Names": (Score("nearest", 0.5, 8, 0.0125, 1.0),)},
        charts={"Loss": (Curve("training", ((0.0, 2.0), (9.0, 1.0))),)},
        stages=(Stage("shards", 2.5, "eight"), Stage("model", 57.5)),
        facts={"Processor": "some & such"},
    )


def test_the_page_is_whole_and_needs_nothing_else(report: Report) -> None:
    page = write_page(report)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.sources) == 7
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert "<script" not in page
    assert not re.search(r"https?://", page)


def test_what_was_memorised_is_labelled(report: Report) -> None:
    page = write_page(report)
    seen, unseen = page.index("a dog</p>"), page.index("two dogs on a &lt;blue&gt; tile</p>")
    assert page.index("memorised</span>") in range(seen, unseen)
    assert page.index("never seen</span>") > unseen
    assert "A &lt;run&gt;" in page
    assert "truth: a dog" in page
    assert "1.0 minutes" in page
    assert "1.2 %" in page
    assert "some &amp; such" in page


def test_scores_know_their_unit() -> None:
    scores = (Score("PSNR", 26.04, 8, unit="dB"), Score("yes-no questions", 0.75, 8, chance=0.5, blind=0.505))
    loud, share = (score.describe() for score in scores)
    assert loud.split() == ["PSNR", "26.04", "dB", "of", "8"]
    assert share.endswith("75.0 % of 8, chance 50.0 %, blind 50.5 %")
    page = write_page(Report(title="", lead="", scores={"all": scores}))
    assert "<th>blind</th><th>ceiling</th>" in page
    assert "<b>26.04 dB</b></td><td></td>" in page
    assert "<th>blind</th>" not in write_page(Report(title="", lead="", scores={"all": scores[:1]}))


def test_it_is_saved_whole(report: Report, tmp_path: Path) -> None:
    save_report(report, tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(OSError, match="nowhere"):
        save_report(report, tmp_path / "nowhere" / "report.html")
