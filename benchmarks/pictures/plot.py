"""A benchmark as a plot.

Above, for each batch size, how long each contestant takes beside its baseline, with quartiles. Below, where the time of
the smallest batch goes.
"""

from textwrap import fill
from typing import TYPE_CHECKING

from actvar.benchmarks.pictures.measure import Measured, Spread
from actvar.benchmarks.pictures.report import BenchReport
from actvar.plotting import BLUE, FAINT, GREEN, GREY, INK, ORANGE, Colour, new_figure, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _ROW, _FRAME = 9.0, 0.3, 1.0  # inches: of the whole, of a bar, and of what is around the bars of a panel
_ROOM = 1.12  # of the longest bar, for the number behind it
_LINE = 140  # letters of the title
_GROUND = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # of a number, over the baseline's line


def plot(report: BenchReport) -> "Figure":
    """The whole plot.

    Raises:
        NoPlots: matplotlib is not installed.
    """
    panels = len(report.plan.batches) + 1
    figure = new_figure(_WIDTH, panels * (_ROW * len(report.measured) + _FRAME) + _FRAME)
    *ratios, parts = figure.subplots(panels, 1, squeeze=False)[:, 0]
    for axes, batch in zip(ratios, report.plan.batches, strict=True):
        _ratios(axes, report, batch)
    _parts(parts, report)
    figure.suptitle(fill(report.title, _LINE), x=0.01, ha="left", fontsize=8, color=FAINT)
    figure.legend(loc="outside lower right", ncols=5)
    return figure


def _ratios(axes: "Axes", report: BenchReport, batch: int) -> None:
    """A bar for each contestant, and its quartiles."""
    spreads = [report.ratio(figures, batch) for figures in report.measured]
    colours = [BLUE if figures.contestant.kind == "graphs" else GREY for figures in report.measured]
    whiskers = [[s.median - s.lower for s in spreads], [s.upper - s.median for s in spreads]]
    axes.barh(range(len(spreads)), [s.median for s in spreads], 0.7, color=colours)
    axes.errorbar([s.median for s in spreads], range(len(spreads)), xerr=whiskers, fmt="none", ecolor=INK, capsize=3)
    axes.axvline(1, color=FAINT, linewidth=0.8, linestyle=":")
    for place, spread in enumerate(spreads):
        _number(axes, spread.upper, place, spread.median)
    axes.set_xlim(0, _ROOM * max(1.0, *(s.upper for s in spreads)))
    _frame(axes, report, f"Batch {batch}: time beside the baseline", "multiple of the baseline's time, with quartiles")


def _parts(axes: "Axes", report: BenchReport) -> None:
    """For each contestant the graphs of a batch, one behind the other, and what is outside of them."""
    batch, totals = report.plan.batches[0], []
    for place, figures in enumerate(report.measured):
        end = 0.0
        for seconds, colour in _medians(figures, batch):
            axes.barh(place, max(seconds, 0.0), 0.7, left=end, color=colour)
            end += max(seconds, 0.0)
        totals.append(Spread.of([drawn.seconds for drawn in figures.looked_into[batch]]).median)
        _number(axes, end, place, totals[-1])
    axes.set_xlim(0, _ROOM * max(totals))
    first, last = shades(2)
    named: dict[str, Colour] = {
        "condition": GREEN,
        "first scale": first,
        "last scale": last,
        "decoder": ORANGE,
        "outside": GREY,
    }
    for name, colour in named.items():  # a bar of no length brings its name into the legend
        axes.barh(0, 0, color=colour, label=name)
    _frame(axes, report, f"Batch {batch}: where the time goes", "seconds (medians)")


def _medians(figures: Measured, batch: int) -> list[tuple[float, Colour]]:
    """Seconds of every graph and of what is outside, with their colours."""
    draws = figures.looked_into[batch]
    graphs = list(draws[0].graphs)
    scales = [graph for graph in graphs if graph.startswith("scale")]
    colours: dict[str, Colour] = {
        "condition": GREEN,
        "decoder": ORANGE,
        **dict(zip(scales, shades(len(scales)), strict=True)),
    }
    medians = [(Spread.of([drawn.graphs[graph] for drawn in draws]).median, colours[graph]) for graph in graphs]
    return [*medians, (Spread.of([drawn.outside for drawn in draws]).median, GREY)]


def _number(axes: "Axes", end: float, place: int, value: float) -> None:
    axes.annotate(
        f"{value:.3f}", (end, place), (6, 0), textcoords="offset points", va="center", fontsize=9, bbox=_GROUND
    )


def _frame(axes: "Axes", report: BenchReport, title: str, unit: str) -> None:
    names = [f"{figures.contestant.name}, {figures.contestant.precision}" for figures in report.measured]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.set_title(title)
    axes.set_xlabel(unit)
