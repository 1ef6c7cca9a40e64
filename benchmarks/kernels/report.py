"""What the kernels' benchmark found: tables for a person, JSON for a program, a plot. Ratios come first."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from actvar.benchmarks.kernels.cases import RECORDED, Ceiling, Moved, Routed
from actvar.plotting import FAINT, SERIES, new_figure
from actvar.runtime.machine import Machine

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT, VERSION = "actvar-kernel-bench", 3
COPY_AIM = 1.3
FFN_AIMS = {(12, 4096): 0.87, (12, 24576): 0.82, (4, 4096): 0.38, (4, 24576): 0.33}
"""Of the routed FFN's time as a multiple of the dense one's, by active experts and tokens; 1 for all others."""

_MICRO, _TERA = 1e6, 1e-12
_PANEL, _FRAME = 3.2, 1.6  # inches: a panel's width and height, and what is around them
_MARKERS = "osD^"


@dataclass(frozen=True)
class KernelReport:
    """A benchmark: how it was asked for, where it ran, what is reached there at best, and every figure so far."""

    command: str
    machine: Machine
    ceiling: Ceiling
    moved: tuple[Moved, ...]
    routed: tuple[Routed, ...]

    @property
    def title(self) -> str:
        """Where, in a line."""
        reached = f"cuBLASLt reaches {self.ceiling.operations * _TERA:.0f} TFLOP/s in fp16"
        return f"{self.machine.gpu}; {reached}, a copy {self.ceiling.bytes * _TERA:.2f} TB/s"

    def tables(self) -> list[Table]:
        """What moves bytes, then the routed FFN."""
        return [self._moved(), self._routed()]

    def _moved(self) -> Table:
        title = f"{self.title}. Kernels that move bytes; aim: at most {COPY_AIM} of a copy of as many"
        table = _table(title, "kernel", "shape", "MB", "µs", "copy µs", "ratio", "of ceiling")
        for moved in self.moved:
            table.add_row(
                moved.kernel,
                " ".join(f"{name} {size}" for name, size in moved.shape.items()),
                f"{moved.bytes / 1e6:.2f}",
                f"{moved.seconds.median * _MICRO:.1f}",
                f"{moved.copy.median * _MICRO:.1f}",
                f"{moved.ratio:.2f}",
                f"{moved.reached(self.ceiling)['bytes']:.2f}",
            )
        return table

    def _routed(self) -> Table:
        tactics = sorted(self.routed[0].tactics) if self.routed else []
        title = "Routed FFN: time as a multiple of cuBLASLt's dense FFN, by tactic; * marks the library's own choice"
        cases = "width", "active", "masks", "tokens", "dense µs", "of ceiling", "static"
        table = _table(title, *cases, *map(str, tactics), "best", "of ceiling", "aim")
        for figures in sorted(self.routed, key=lambda f: (f.width, f.active, f.routing, f.tokens)):
            reached, best = figures.reached_dense(self.ceiling), figures.reached(self.ceiling)[figures.best]
            marks = {tactic: "*" if tactic == figures.default else "" for tactic in tactics}
            table.add_row(
                *(str(figures.width), str(figures.active), figures.routing, str(figures.tokens)),
                f"{figures.dense.median * _MICRO:.1f}",
                f"{max(reached.values()):.2f}",
                f"{figures.static_ratio:.2f}",
                *(f"{figures.ratios[tactic]:.2f}{marks[tactic]}" for tactic in tactics),
                str(figures.best),
                f"{max(best.values()):.2f}",
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
            "ceiling_operations_per_second": self.ceiling.operations,
            "ceiling_bytes_per_second": self.ceiling.bytes,
            "moved": [
                {**asdict(moved), "ratio": moved.ratio, "reached": moved.reached(self.ceiling)} for moved in self.moved
            ],
            "routed": [_routed_to_json(figures, self.ceiling) for figures in self.routed],
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def plot(self) -> "Figure":
        """The best tactic beside the dense FFN over the number of tokens, a panel for each number of active experts.

        Raises:
            NoPlots: matplotlib is not installed.
        """
        panels = sorted({figures.active for figures in self.routed})
        figure = new_figure(_PANEL * max(len(panels), 2), _PANEL + _FRAME)
        rows = figure.subplots(1, max(len(panels), 1), sharey=True, squeeze=False)
        for axes, active in zip(rows[0], panels, strict=False):
            _panel(axes, [f for f in self.routed if f.active == active], active)
        highest = max((min(figures.ratios.values()) for figures in self.routed), default=0.0)
        rows[0][0].set_ylim(0, max(1.2, 1.05 * highest))
        rows[0][0].set_ylabel("time of the best tactic,\nas a multiple of the dense FFN's")
        figure.suptitle(self.title, x=0.01, ha="left", fontsize=8, color=FAINT)
        figure.legend(*_legend(rows[0]), loc="outside lower center", ncols=4)
        return figure


def _routed_to_json(figures: Routed, ceiling: Ceiling) -> dict[str, Any]:
    return {
        **asdict(figures),
        "ratios": figures.ratios,
        "static_ratio": figures.static_ratio,
        "best": figures.best,
        "aim": FFN_AIMS.get((figures.active, figures.tokens), 1.0),
        "dense_operations": figures.dense_operations,
        "reached_dense": figures.reached_dense(ceiling),
        "reached": figures.reached(ceiling),
    }


def _panel(axes: "Axes", routed: Sequence[Routed], active: int) -> None:
    """Lines of ratios, one for each width and kind of masks."""
    widths = sorted({figures.width for figures in routed})
    for width, routing in sorted({(figures.width, figures.routing) for figures in routed}):
        chosen = sorted((f for f in routed if (f.width, f.routing) == (width, routing)), key=lambda f: f.tokens)
        axes.plot(
            [figures.tokens for figures in chosen],
            [min(figures.ratios.values()) for figures in chosen],
            color=SERIES[widths.index(width) % len(SERIES)],
            marker=_MARKERS[widths.index(width) % len(_MARKERS)],
            linestyle="--" if routing == RECORDED else "-",
            label=f"C = {width}, {routing} masks",
        )
    axes.axhline(1, color=FAINT, linewidth=0.8, linestyle=":")
    tokens = sorted({figures.tokens for figures in routed})
    axes.set_xscale("log")
    axes.set_xticks(tokens, list(map(str, tokens)), rotation=45, ha="right", rotation_mode="anchor")
    axes.minorticks_off()
    axes.grid()
    axes.set_title(f"{active} active experts")
    axes.set_xlabel("tokens")


def _legend(rows: Iterable["Axes"]) -> tuple[list["Artist"], list[str]]:
    """Every line's name once; 16 active experts have no recorded masks."""
    named = {name: line for axes in rows for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(named.values()), list(named)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading not in ("kernel", "shape", "masks") else "left")
    return table
