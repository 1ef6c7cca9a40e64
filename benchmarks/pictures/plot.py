"""A benchmark as a drawing: SVG text, written by hand, as two sets of bars need no library.

Above, for each batch size, how long each contestant takes beside its baseline, with quartiles. Below, where the time of
the smallest batch goes.
"""

from collections.abc import Iterator
from xml.sax.saxutils import escape

from actvar.benchmarks.pictures.measure import Measured, Spread
from actvar.benchmarks.pictures.report import BenchReport

_WIDTH, _LEFT, _RIGHT = 900, 260, 90
_ROW, _BAR, _GAP = 20, 14, 34
_STRONG, _PLAIN, _LINE = "#1f5fa8", "#9aa5b1", "#222"
_DECODER, _CONDITION, _OUTSIDE = "#d98032", "#5b8c5a", "#d0d0d0"


def plot(report: BenchReport) -> str:
    """The whole drawing."""
    parts: list[str] = []
    top = _GAP
    for batch in report.plan.batches:
        parts += _heading(top, f"batch {batch}: time as a multiple of the baseline's (median and quartiles)")
        found = {id(figures): report.ratio(figures, batch) for figures in report.measured}
        longest = max(spread.upper for spread in found.values())
        for figures in report.measured:
            top += _ROW
            parts += _ratio_bar(top, figures, found[id(figures)], longest)
        top += _GAP
    first = report.plan.batches[0]
    parts += _heading(top, f"batch {first}: where the time goes, in seconds (medians)")
    totals = [Spread.of([drawn.seconds for drawn in figures.looked_into[first]]).median for figures in report.measured]
    for figures, total in zip(report.measured, totals, strict=True):
        top += _ROW
        parts += _stacked_bar(top, figures, first, total, max(totals))
    top += _GAP
    parts += [_text(_LEFT, top, "green: condition, blue: scales, first to last, orange: decoder, grey: outside")]
    parts += [_text(10, top + _ROW, report.title)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top + 2 * _ROW}"'
    style = 'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    return "\n".join([f"{head} {style}", *parts, "</svg>", ""])


def _ratio_bar(top: int, figures: Measured, ratio: Spread, longest: float) -> Iterator[str]:
    yield from _label(top, figures)
    colour = _STRONG if figures.contestant.kind == "graphs" else _PLAIN
    yield _bar(_LEFT, top, _length(ratio.median, longest), colour)
    lower, upper, middle = _length(ratio.lower, longest), _length(ratio.upper, longest), top + _BAR / 2
    ends = f'x1="{_LEFT + lower:.1f}" x2="{_LEFT + upper:.1f}" y1="{middle}" y2="{middle}"'
    yield f'<line {ends} stroke="{_LINE}" stroke-width="2"/>'
    yield _text(_LEFT + upper + 6, top, f"{ratio.median:.3f}")


def _stacked_bar(top: int, figures: Measured, batch: int, total: float, longest: float) -> Iterator[str]:
    yield from _label(top, figures)
    draws, left = figures.looked_into[batch], float(_LEFT)
    graphs = list(draws[0].graphs)
    scales = [graph for graph in graphs if graph.startswith("scale")]
    medians = {graph: Spread.of([drawn.graphs[graph] for drawn in draws]).median for graph in graphs}
    medians["outside"] = Spread.of([drawn.outside for drawn in draws]).median
    for graph, seconds in medians.items():
        if graph in scales:
            shade = 85 - 50 * scales.index(graph) // max(len(scales) - 1, 1)
            colour = f"hsl(212,65%,{shade}%)"
        else:
            colour = {"condition": _CONDITION, "decoder": _DECODER}.get(graph, _OUTSIDE)
        length = _length(max(seconds, 0), longest)
        yield _bar(left, top, length, colour, f"{graph}: {seconds * 1e3:.1f} ms")
        left += length
    yield _text(left + 6, top, f"{total:.3f}")


def _length(value: float, longest: float) -> float:
    return value / longest * (_WIDTH - _LEFT - _RIGHT)


def _bar(left: float, top: int, length: float, colour: str, title: str = "") -> str:
    shape = f'<rect x="{left:.1f}" y="{top}" width="{length:.1f}" height="{_BAR}" fill="{colour}"'
    return f"{shape}><title>{escape(title)}</title></rect>" if title else f"{shape}/>"


def _heading(top: int, text: str) -> Iterator[str]:
    yield f'<text x="10" y="{top + _BAR - 3}" font-weight="bold">{escape(text)}</text>'


def _label(top: int, figures: Measured) -> Iterator[str]:
    yield _text(10, top, f"{figures.contestant.name}, {figures.contestant.precision}")


def _text(left: float, top: int, text: str) -> str:
    return f'<text x="{left:.1f}" y="{top + _BAR - 3}">{escape(text)}</text>'
