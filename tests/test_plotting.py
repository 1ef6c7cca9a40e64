"""Plots: the same bytes every time, whatever a user's own settings are, and commands that do without."""

import sys
from xml.dom import minidom

import matplotlib
import pytest
from matplotlib.figure import Figure

from actvar.plotting import NoPlots, new_figure, plot_files, rendered, shades

NAMES = ("$a_b$", 'a <name> & "another"', "Fréchet ± 2 µs")


def draw() -> "Figure":
    figure = new_figure(4, 3)
    axes = figure.subplots()
    for place, name in enumerate(NAMES):
        axes.plot([0, 1], [place, 1], "o-", label=name)
    axes.legend()
    return figure


def test_a_plot_is_the_same_bytes_every_time(monkeypatch: pytest.MonkeyPatch):
    """So that a plot in the docs can be made again, on a machine whose owner likes other fonts and colours."""
    first = rendered(draw, "png", "svg")
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 25)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    assert rendered(draw, "png", "svg") == first
    assert matplotlib.rcParams["font.size"] == 25, "a user's settings are left as they were"


def test_names_are_shown_as_they_are():
    """A dollar is no formula, and text can be searched."""
    [svg] = rendered(draw, "svg")
    texts = [node.firstChild.data for node in minidom.parseString(svg).getElementsByTagName("text")]
    assert set(NAMES) <= set(texts)


def test_no_window_is_opened():
    """pyplot keeps every figure, and picks a screen."""
    rendered(draw, "png")
    assert "matplotlib.pyplot" not in sys.modules


def test_without_matplotlib_a_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """And the command goes on; whoever wants nothing but the plot gets the error."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot_files("bench", draw) == {}
    said = capfd.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert "No plot was drawn" in said.err and "pip install 'actvar-trt[plot]'" in said.err
    with pytest.raises(NoPlots):
        rendered(draw, "svg")


def test_another_mistake_is_not_taken_for_a_missing_package():
    """A bug in a plot must show itself."""

    def wrong() -> "Figure":
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        plot_files("bench", wrong)


def test_shades_go_from_pale_to_dark():
    """Of one thing, too."""
    sums = [sum(colour) for colour in shades(10)]
    assert sums == sorted(sums, reverse=True) and len(set(sums)) == 10
    assert len(shades(1)) == 1 and shades(0) == []
