"""The bar: every item comes through, with and without it."""

import pytest

from anymodal.data.progress import track


def test_short_passes_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(5), "packing")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")


def test_long_passes_show_a_bar_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anymodal.data.progress.PATIENCE_S", -1.0)
    assert list(track((number for number in range(5)), "packing")) == [0, 1, 2, 3, 4]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "packing" in shown.err
