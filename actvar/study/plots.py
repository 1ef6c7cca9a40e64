"""The study as drawings: SVG text, written by hand, as dots and lines need no library. Plain Python.

One drawing of all rows by a metric, a dot for each seed; one of the distance by operations saved (Table 2), and one by
the number of experts (Figure 9).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from actvar.study.claims import FRECHET, KL
from actvar.study.figures import Figures
from actvar.study.matrix import FULL, ROWS, row_named
from actvar.study.paper import TABLES

_WIDTH, _LEFT, _RIGHT, _ROW = 760, 330, 40, 26
_PLOT_HEIGHT, _MARGIN = 340, 60
_DOT, _MEAN, _GRID, _INK = "#9aa5b1", "#1f5fa8", "#e4e7eb", "#1f2933"
_TICKS = 4


@dataclass(frozen=True)
class _Axis:
    """Values from low to high onto pixels from start to end."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5  # of one value alone
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        return [self.low + (self.high - self.low) * i / _TICKS for i in range(_TICKS + 1)]


def drawings(figures: Figures) -> dict[str, str]:
    """All that there is something to draw for, by file name."""
    made = {
        "study-frechet.svg": _rows(figures, FRECHET),
        "study-kl.svg": _rows(figures, KL),
        "study-rates.svg": _curve(
            figures,
            "Fréchet distance by operations saved, % (rates of Table 2)",
            [(figures.values("saved").get(line.row, {}), line.row) for line in TABLES[0].lines],
        ),
        "study-experts.svg": _curve(
            figures,
            "Fréchet distance by number of experts (Figure 9)",
            [(_experts(figures, name), name) for name in ("experts-4", "experts-8", FULL, "experts-32")],
        ),
    }
    return {name: text for name, text in made.items() if text}


def _experts(figures: Figures, name: str) -> dict[int, float]:
    activation = row_named(name).activation
    assert activation
    return {seed: activation.experts / 100 for seed in figures.values(FRECHET).get(name, {})}


def _rows(figures: Figures, metric: str) -> str:
    """A line for each row: its seeds, and their mean."""
    values = figures.positive(metric)
    shown = [row for row in ROWS if row.name in values]
    if not shown:
        return ""
    high = max(value for of_row in values.values() for value in of_row.values()) * 1.05
    axis = _Axis(0.0, high, _LEFT, _WIDTH - _RIGHT)
    bottom = _MARGIN + _ROW * len(shown)
    parts = [_text(10, 28, metric + ": a dot for each seed, a bar for their mean", bold=True)]
    for tick in axis.ticks:
        parts.append(_line(axis.at(tick), _MARGIN - 10, axis.at(tick), bottom, _GRID))
        parts.append(_text(axis.at(tick), bottom + 18, f"{tick:.2f}", "middle"))
    for place, row in enumerate(shown):
        middle, of_row = _MARGIN + _ROW * (place + 0.5), list(values[row.name].values())
        mean = sum(of_row) / len(of_row)
        parts.append(_text(10, middle + 4, row.words))
        parts += [_dot(axis.at(value), middle) for value in of_row]
        parts.append(_line(axis.at(mean), middle - 9, axis.at(mean), middle + 9, _MEAN, 3))
    return _svg(bottom + 40, parts)


def _curve(figures: Figures, title: str, rows: Sequence[tuple[Mapping[int, float], str]]) -> str:
    """Distances over shares of 100: dots for seeds, a line through the means."""
    values = figures.values(FRECHET)
    there = [(100 * next(iter(across.values())), values[name]) for across, name in rows if across and name in values]
    if len(there) < 2:
        return ""
    there.sort(key=lambda point: point[0])
    high = max(value for _, of_row in there for value in of_row.values()) * 1.1
    span = there[-1][0] - there[0][0]
    right = _Axis(there[0][0] - 0.05 * span, there[-1][0] + 0.05 * span, _MARGIN, _WIDTH - _RIGHT)
    up = _Axis(0.0, high, _PLOT_HEIGHT, _MARGIN)
    parts = [_text(10, 28, title, bold=True)]
    for tick in up.ticks:
        parts.append(_line(_MARGIN, up.at(tick), _WIDTH - _RIGHT, up.at(tick), _GRID))
        parts.append(_text(_MARGIN - 6, up.at(tick) + 4, f"{tick:.2f}", "end"))
    means = [(right.at(across), up.at(sum(of_row.values()) / len(of_row))) for across, of_row in there]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in means)
    parts.append(f'<polyline points="{points}" fill="none" stroke="{_MEAN}" stroke-width="2"/>')
    for across, of_row in there:
        parts += [_dot(right.at(across), up.at(value)) for value in of_row.values()]
        parts.append(_text(right.at(across), _PLOT_HEIGHT + 20, f"{across:.3g}", "middle"))
    return _svg(_PLOT_HEIGHT + 40, parts)


def _svg(height: float, parts: Sequence[str]) -> str:
    def lines() -> Iterator[str]:
        yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" '
        yield 'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        yield from parts
        yield "</svg>\n"

    return "\n".join(lines())


def _dot(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_DOT}" fill-opacity="0.8"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{_INK}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'
