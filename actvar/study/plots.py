"""The study as plots.

One of all rows by each metric, a dot for each seed; one of the distance by operations saved (Table 2), and one by the
number of experts (Figure 9).
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from actvar.plotting import BLUE, GREY, new_figure, rendered
from actvar.study.claims import FRECHET, KL
from actvar.study.figures import Figures
from actvar.study.matrix import FULL, ROWS, row_named
from actvar.study.paper import TABLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _ROW, _FRAME, _CURVE = 9.0, 0.28, 1.1, 4.0  # inches: of all, of a row, around the rows, and a curve's height
_ROOM = 1.05  # of the largest value
_SEED, _MEAN = "a seed", "mean of the seeds"
_Point = tuple[float, Sequence[float]]
"""A place on the x axis, and the distances of its seeds."""


def drawings(figures: Figures) -> dict[str, str]:
    """All that there is something to draw for: SVG by file name.

    Raises:
        NoPlots: matplotlib is not installed.
    """
    draws: dict[str, Callable[[], Figure]] = {}
    for name, metric in (("frechet", FRECHET), ("kl", KL)):
        if values := figures.positive(metric):
            draws[name] = lambda metric=metric, values=values: _rows(metric, values)  # type: ignore[misc]
    curves = {
        "rates": (_by_savings(figures), "Distance by operations saved (rates of Table 2)", "operations saved, %"),
        "experts": (_by_experts(figures), "Distance by number of experts (Figure 9)", "experts of a block"),
    }
    for name, (points, *words) in curves.items():
        if len(points) > 1:
            draws[name] = lambda points=points, words=words: _curve(points, *words)  # type: ignore[misc]
    return {f"study-{name}.svg": rendered(draw, "svg")[0].decode() for name, draw in draws.items()}


def _by_savings(figures: Figures) -> list[_Point]:
    saved = {line.row: figures.spread(line.row, "saved") for line in TABLES[0].lines}
    return _points(figures, {row: 100 * share.mean for row, share in saved.items() if share})


def _by_experts(figures: Figures) -> list[_Point]:
    activations = {name: row_named(name).activation for name in ("experts-4", "experts-8", FULL, "experts-32")}
    return _points(figures, {name: activation.experts for name, activation in activations.items() if activation})


def _points(figures: Figures, places: Mapping[str, float]) -> list[_Point]:
    """Of the rows that have been measured, from left to right."""
    values = figures.values(FRECHET)
    return sorted((place, list(values[row].values())) for row, place in places.items() if row in values)


def _rows(metric: str, values: Mapping[str, Mapping[int, float]]) -> "Figure":
    """A line for each row: its seeds, and their mean."""
    shown = [row for row in ROWS if row.name in values]
    of_rows = [list(values[row.name].values()) for row in shown]
    figure = new_figure(_WIDTH, _ROW * len(shown) + _FRAME)
    axes = figure.subplots()
    places = [place for place, of_row in enumerate(of_rows) for _ in of_row]
    axes.plot([value for of_row in of_rows for value in of_row], places, "o", color=GREY, label=_SEED)
    means = list(map(fmean, of_rows))
    axes.plot(means, range(len(means)), "|", color=BLUE, markersize=14, markeredgewidth=3, label=_MEAN)
    axes.set_yticks(range(len(shown)), [row.words for row in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, _ROOM * max(map(max, of_rows)))
    axes.set_xlabel(f"{metric} (lower is better)")
    axes.grid(axis="x")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def _curve(points: Sequence[_Point], title: str, across: str) -> "Figure":
    """Dots for seeds, a line through their means."""
    places = [place for place, _ in points]
    figure = new_figure(_WIDTH, _CURVE)
    axes = figure.subplots()
    seeds = [(place, value) for place, of_row in points for value in of_row]
    axes.plot(*zip(*seeds, strict=True), "o", color=GREY, label=_SEED)
    axes.plot(places, [fmean(of_row) for _, of_row in points], color=BLUE, linewidth=2, label=_MEAN)
    axes.set_xticks(places, [f"{place:.3g}" for place in places])
    axes.set_ylim(0, _ROOM * max(value for _, value in seeds) or 1)  # 1 where all are 0
    axes.set_title(title)
    axes.set_xlabel(across)
    axes.set_ylabel(f"{FRECHET} (lower is better)")
    axes.grid(axis="y")
    axes.legend(loc="lower left")
    return figure
