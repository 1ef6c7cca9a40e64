"""What a benchmark found: tables for a person, JSON for a program.

Ratios come first; a time by itself says as much about the machine, which is therefore named with it.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from actvar.benchmarks.pictures.measure import (
    Measured,
    Plan,
    Saving,
    Spread,
    baseline,
    beyond_products,
    graph_operations,
    ratios,
    savings,
    share_of_ceiling,
)
from actvar.bundle.contract import graph_names, scale_name
from actvar.config import ModelConfig
from actvar.errors import counted
from actvar.flops import transformer_work
from actvar.runtime.backends.protocol import Device
from actvar.runtime.machine import Machine

FORMAT, VERSION = "actvar-bench", 1
_MILLI, _MEGA, _GIGA = 1e3, 1e-6, 1e-9


@dataclass(frozen=True)
class BenchReport:
    """A benchmark: how it was asked for, where and with how many threads it ran, and what every contestant did."""

    command: str
    machine: Machine
    device: Device
    threads: int
    plan: Plan
    measured: tuple[Measured, ...]

    @property
    def title(self) -> str:
        """Where and how, in a line."""
        how = f"{counted(self.threads, 'thread')} each, {counted(self.plan.rounds, 'round')}, on {self.device}"
        return f"{self.machine.in_words()}; {how}"

    def baseline_of(self, figures: Measured) -> Measured:
        """What a contestant is compared with."""
        return baseline(figures, self.measured)

    def ratio(self, figures: Measured, batch: int) -> Spread:
        """Its time as a multiple of its baseline's."""
        return ratios(figures, self.baseline_of(figures), batch)

    def tables(self) -> list[Table]:
        """Ratios and times, where the rest of the time goes, what an ActVAR saves, each graph, and cold starts."""
        saved = savings(self.measured)
        graphs = [self._graphs(batch) for batch in sorted({self.plan.batches[0], self.plan.batches[-1]})]
        rest = [self._rest(self.plan.batches[0])] if any(figures.products for figures in self.measured) else []
        return [self._times(), *rest, *([_savings(saved)] if saved else []), *graphs, self._cold_starts()]

    def _times(self) -> Table:
        heads = ("batch", "GFLOP", "seconds", "pictures/s", "ratio", "of a product", "outside ms", "peak MB")
        table = _table(self.title, "", *heads)
        for figures in self.measured:
            against = self.baseline_of(figures)
            for batch in self.plan.batches:
                seconds = Spread.of(figures.seconds[batch])
                outside = Spread.of([drawn.outside for drawn in figures.looked_into[batch]])
                table.add_row(
                    _name(figures) if batch == self.plan.batches[0] else "",
                    str(batch),
                    f"{batch * _whole(figures.contestant.model) * _GIGA:.0f}",
                    _spread(seconds, 3),
                    f"{batch / seconds.median:.3f}",
                    "baseline" if figures is against else _spread(self.ratio(figures, batch), 3),
                    "" if (share := share_of_ceiling(figures, batch)) is None else f"{share:.2f}",
                    f"{outside.median * _MILLI:.1f}",
                    f"{_peak(figures, batch) * _MEGA:.0f}",
                )
            table.add_section()
        return table

    def _rest(self, batch: int) -> Table:
        title = (
            f"Milliseconds beyond what its operations take at the speed of one large product, batch {batch}: by part, "
            "small scales being those with less than a quarter of the last one's tokens"
        )
        found = [(figures, beyond_products(figures, batch)) for figures in self.measured if figures.ceiling]
        table = _table(title, "", "product GFLOP/s", "at its speed", *found[0][1])
        for figures, rest in found:
            ceiling = figures.ceiling or 0
            at_its_speed = batch * _whole(figures.contestant.model) / ceiling
            cells = (f"{seconds * _MILLI:.0f}" for seconds in (at_its_speed, *rest.values()))
            table.add_row(_name(figures), f"{ceiling * _GIGA:.0f}", *cells)
        return table

    def _graphs(self, batch: int) -> Table:
        title = f"Milliseconds of each graph, batch {batch} (median); what PyTorch does between two scales is in them"
        table = _table(title, "", *(_name(figures) for figures in self.measured))
        models = (figures.contestant.model for figures in self.measured)
        longest = max((graph_names(model) for model in models), key=len)
        times = [_graph_spreads(figures, batch) for figures in self.measured]
        for graph in longest:
            found = (of_graph[graph].median * _MILLI if graph in of_graph else None for of_graph in times)
            table.add_row(graph, *("" if value is None else f"{value:.1f}" for value in found))
        table.add_section()
        for label, take in (("transformer", "transformer"), ("outside", "outside")):
            medians = (Spread.of([getattr(d, take) for d in m.looked_into[batch]]).median for m in self.measured)
            table.add_row(label, *(f"{median * _MILLI:.1f}" for median in medians))
        return table

    def _cold_starts(self) -> Table:
        first = self.plan.batches[0]
        title = f"Seconds from a process's start, {self.plan.starts} starts, files in the disk cache, batch {first}"
        heads = ("imports", "model opened", "first scale", "pictures", "generate, as a command")
        table = _table(title, "", *heads)
        for figures in self.measured:
            cells = (_spread(spread, 2) if spread else "" for spread in _cold(figures, first).values())
            table.add_row(_name(figures), *cells)
        return table

    def to_json(self) -> str:
        """All of it, every single measurement too."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "command": self.command,
            "machine": asdict(self.machine),
            "device": self.device,
            "threads": self.threads,
            "plan": asdict(self.plan),
            "contestants": [self._contestant(figures) for figures in self.measured],
            "savings": [_saving(saving) for saving in savings(self.measured)],
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def _contestant(self, figures: Measured) -> dict[str, Any]:
        contestant, first = figures.contestant, self.plan.batches[0]
        return {
            "name": contestant.name,
            "kind": contestant.kind,
            "backend": contestant.backend,
            "precision": contestant.precision,
            "model": contestant.model.to_dict() | {"class_names": []},
            "operations": _operations(contestant.model),
            "baseline": self.baseline_of(figures).contestant.name,
            "product_operations_per_second": figures.products,
            "cold_start": {name: spread and asdict(spread) for name, spread in _cold(figures, first).items()},
            "batches": {str(batch): self._batch(figures, batch) for batch in self.plan.batches},
        }

    def _batch(self, figures: Measured, batch: int) -> dict[str, Any]:
        seconds, looked_into = Spread.of(figures.seconds[batch]), figures.looked_into[batch]
        return {
            "seconds": asdict(seconds),
            "pictures_per_second": batch / seconds.median,
            "ratio": asdict(self.ratio(figures, batch)),
            "share_of_product": share_of_ceiling(figures, batch),
            "seconds_beyond_products": beyond_products(figures, batch),
            "graphs": {graph: asdict(spread) for graph, spread in _graph_spreads(figures, batch).items()},
            "transformer": asdict(Spread.of([drawn.transformer for drawn in looked_into])),
            "outside": asdict(Spread.of([drawn.outside for drawn in looked_into])),
            "peak_bytes": _peak(figures, batch),
        }


def _savings(saved: list[Saving]) -> Table:
    title = (
        "What an ActVAR saves of its dense model's transformer; realised is time saved for operations saved, "
        "attainable what it would be at the dense model's operations in a second, graph by graph"
    )
    table = _table(title, "", "batch", "operations", "time", "realised", "attainable")
    for saving in saved:
        shares = (_spread(saving.time, 3), _spread(saving.realised, 2), _spread(saving.attainable, 2))
        table.add_row(escape(saving.active.name), str(saving.batch), f"{saving.operations:.3f}", *shares)
    return table


def _saving(saving: Saving) -> dict[str, Any]:
    return {
        "active": saving.active.name,
        "dense": saving.dense.name,
        "batch": saving.batch,
        "operations_saved": saving.operations,
        "time_saved": asdict(saving.time),
        "realised": asdict(saving.realised),
        "attainable": asdict(saving.attainable),
    }


def _operations(model: ModelConfig) -> dict[str, int]:
    """Of one picture, by graph and in all."""
    return {**graph_operations(model), "transformer": transformer_work(model)}


def _whole(model: ModelConfig) -> int:
    """Operations of one picture."""
    return sum(graph_operations(model).values())


def _cold(figures: Measured, batch: int) -> dict[str, Spread | None]:
    """From a process's start to each of its milestones, in the order in which they come."""
    starts = figures.fresh[batch]
    scales = [[lap.ended for lap in start.drawn.laps if lap.graph == scale_name(0)] for start in starts]
    return {
        "imported": Spread.of([start.opening.imported for start in starts]),
        "opened": Spread.of([start.opening.opened for start in starts]),
        "first_scale": Spread.of([ends[0] for ends in scales]) if all(scales) else None,
        "pictures": Spread.of([start.drawn.ended for start in starts]),
        "command": Spread.of(figures.commands) if figures.commands else None,
    }


def _graph_spreads(figures: Measured, batch: int) -> dict[str, Spread]:
    times = [drawn.graphs for drawn in figures.looked_into[batch]]
    return {graph: Spread.of([of_draw[graph] for of_draw in times]) for graph in times[0]}


def _peak(figures: Measured, batch: int) -> int:
    return max(start.drawn.peak_bytes for start in figures.fresh[batch])


def _name(figures: Measured) -> str:
    return escape(f"{figures.contestant.name}, {figures.contestant.precision}")


def _spread(spread: Spread, digits: int) -> str:
    """Median and quartiles."""
    median, lower, upper = (f"{value:.{digits}f}" for value in (spread.median, spread.lower, spread.upper))
    return f"{median} ({lower}–{upper})"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", overflow="fold")
    return table
