"""What the kernels' benchmark found: tables for a person, JSON for a program, a drawing. Ratios come first."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import log
from typing import Any

from rich import box
from rich.table import Table

from actvar.benchmarks.kernels.cases import RECORDED, Moved, Routed
from actvar.runtime.machine import Machine

FORMAT, VERSION = "actvar-kernel-bench", 1
COPY_AIM = 1.3
FFN_AIMS = {(12, 4096): 0.87, (12, 24576): 0.82, (4, 4096): 0.38, (4, 24576): 0.33}
"""Of the routed FFN's time as a multiple of the dense one's, by active experts and tokens; 1 for all others."""

_MICRO, _TERA = 1e6, 1e-12
_PANEL, _LEFT, _TOP, _GAP = 300, 60, 40, 60
_COLOURS = ("#1f5fa8", "#d98032", "#5b8c5a", "#8a4f9e")


@dataclass(frozen=True)
class KernelReport:
    """A benchmark: how it was asked for, where it ran, what tensor cores reach there, and every figure."""

    command: str
    machine: Machine
    ceiling: float
    moved: tuple[Moved, ...]
    routed: tuple[Routed, ...]

    @property
    def title(self) -> str:
        """Where, in a line."""
        return f"{self.machine.gpu}; cuBLASLt reaches {self.ceiling * _TERA:.0f} TFLOP/s in fp16"

    def tables(self) -> list[Table]:
        """What moves bytes, then the routed FFN."""
        return [self._moved(), self._routed()]

    def _moved(self) -> Table:
        title = f"{self.title}. Kernels that move bytes; aim: at most {COPY_AIM} of a copy of as many"
        table = _table(title, "kernel", "shape", "MB", "µs", "copy µs", "ratio")
        for moved in self.moved:
            table.add_row(
                moved.kernel,
                " ".join(f"{name} {size}" for name, size in moved.shape.items()),
                f"{moved.bytes / 1e6:.2f}",
                f"{moved.seconds.median * _MICRO:.1f}",
                f"{moved.copy.median * _MICRO:.1f}",
                f"{moved.ratio:.2f}",
            )
        return table

    def _routed(self) -> Table:
        tactics = sorted(self.routed[0].tactics) if self.routed else []
        title = "Routed FFN: time as a multiple of cuBLASLt's dense FFN, by tactic; * marks the library's own choice"
        heads = ("width", "active", "masks", "tokens", "dense µs", "of ceiling", *map(str, tactics), "best", "aim")
        table = _table(title, *heads)
        for figures in sorted(self.routed, key=lambda f: (f.width, f.active, f.routing, f.tokens)):
            reached = figures.dense_operations / figures.dense.median / self.ceiling
            marks = {tactic: "*" if tactic == figures.default else "" for tactic in tactics}
            table.add_row(
                *(str(figures.width), str(figures.active), figures.routing, str(figures.tokens)),
                f"{figures.dense.median * _MICRO:.1f}",
                f"{reached:.2f}",
                *(f"{figures.ratios[tactic]:.2f}{marks[tactic]}" for tactic in tactics),
                str(figures.best),
                f"{FFN_AIMS.get((figures.active, figures.tokens), 1.0):.2f}",
            )
        return table

    def to_json(self) -> str:
        """All of it, every single measurement too."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "command": self.command,
            "machine": asdict(self.machine),
            "ceiling_operations_per_second": self.ceiling,
            "moved": [{**asdict(moved), "ratio": moved.ratio} for moved in self.moved],
            "routed": [_routed_to_json(figures) for figures in self.routed],
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def plot(self) -> str:
        """SVG: the best tactic beside the dense FFN over the number of tokens, a panel for each number of experts."""
        panels = sorted({figures.active for figures in self.routed})
        width = _LEFT + len(panels) * (_PANEL + _GAP)
        height = _TOP + _PANEL + 2 * _GAP
        style = 'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {style}']
        for i, active in enumerate(panels):
            parts += _panel([f for f in self.routed if f.active == active], active, _LEFT + i * (_PANEL + _GAP))
        parts.append(
            _text(10, height - 12, f"{self.title}. Best tactic; dashed: recorded masks; grey: as long as dense")
        )
        return "\n".join([*parts, "</svg>", ""])


def _routed_to_json(figures: Routed) -> dict[str, Any]:
    return {
        **asdict(figures),
        "ratios": figures.ratios,
        "best": figures.best,
        "aim": FFN_AIMS.get((figures.active, figures.tokens), 1.0),
        "dense_operations": figures.dense_operations,
    }


def _panel(routed: Sequence[Routed], active: int, left: int) -> Iterator[str]:
    """Lines of ratios, one for each width and kind of masks."""
    tokens = sorted({figures.tokens for figures in routed})
    top = max(1.2, *(min(figures.ratios.values()) for figures in routed))
    span = log(tokens[-1] / tokens[0]) or 1.0

    def place(figures: Routed) -> tuple[float, float]:
        across = log(figures.tokens / tokens[0]) / span
        return left + across * _PANEL, _TOP + _PANEL * (1 - min(figures.ratios.values()) / top)

    yield _text(left, _TOP - 16, f"{active} active experts")
    yield f'<rect x="{left}" y="{_TOP}" width="{_PANEL}" height="{_PANEL}" fill="none" stroke="#222"/>'
    equal = _TOP + _PANEL * (1 - 1 / top)
    yield f'<line x1="{left}" x2="{left + _PANEL}" y1="{equal:.1f}" y2="{equal:.1f}" stroke="#9aa5b1"/>'
    yield _text(left - 28, equal + 4, "1.0")
    for count in tokens:
        yield _text(left + log(count / tokens[0]) / span * _PANEL - 14, _TOP + _PANEL + 18, str(count))
    lines = sorted({(figures.width, figures.routing) for figures in routed})
    widths = sorted({width for width, _ in lines})
    for width, routing in lines:
        colour = _COLOURS[widths.index(width) % len(_COLOURS)]
        chosen = sorted((f for f in routed if (f.width, f.routing) == (width, routing)), key=lambda f: f.tokens)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, chosen))
        dashes = ' stroke-dasharray="5,4"' if routing == RECORDED else ""
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'
    for i, width in enumerate(widths):
        label = f'<tspan fill="{_COLOURS[i % len(_COLOURS)]}">C = {width}</tspan>'
        yield f'<text x="{left + 8}" y="{_TOP + _PANEL - 10 - 16 * i}">{label}</text>'


def _text(left: float, top: float, text: str) -> str:
    return f'<text x="{left:.1f}" y="{top:.1f}">{text}</text>'


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading not in ("kernel", "shape", "masks") else "left")
    return table
