from pathlib import Path
from xml.etree import ElementTree

import pytest

from anymodal.scoring.charts import MAX_POINTS, Curve, draw_chart, nice_ticks, read_curves


def test_curves_are_read_from_a_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train_loss,held_out_loss,none\n0,2.5,,\n1,nan,,\n2,1.5,1.75,\n")
    curves = read_curves(path, {"train_loss": "training", "held_out_loss": "held out", "none": "n", "absent": "a"})
    assert curves == [Curve("training", ((0.0, 2.5), (2.0, 1.5))), Curve("held out", ((2.0, 1.75),), held_out=True)]


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="metrics.csv"):
        read_curves(tmp_path / "metrics.csv", {})
    (tmp_path / "metrics.csv").write_text("epoch,loss\n0,1\n")
    with pytest.raises(ValueError, match="column step, got epoch, loss"):
        read_curves(tmp_path / "metrics.csv", {"loss": "loss"})


def test_a_chart_is_well_formed_and_places_its_ends() -> None:
    drawn = draw_chart([Curve("a < b", tuple((float(i), 4.0 - i / 250) for i in range(1001)))], "loss & more")
    svg = ElementTree.fromstring(f"<div>{drawn}</div>")
    line = next(element for element in svg.iter() if element.tag.endswith("polyline"))
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert len(points) <= MAX_POINTS + 1
    assert points[0] == (44.0, 12.0)
    assert points[-1] == (508.0, 210.0)
    with pytest.raises(ValueError, match="at least one point"):
        draw_chart([], "empty")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.13, 0.17), (-3.0, 8.0), (5.0, 5.0), (0.0, 12345.0)])
def test_ticks_span_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 7
