"""The figures of finished cells, by row and seed, as tables and claims ask for them. Plain Python."""

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from actvar.study.claims import FRECHET, KL
from actvar.study.results import Result
from actvar.study.spread import Values

Read = Callable[[Mapping[str, Any]], float | None]
"""A figure out of a cell's metrics; None where the cell has none."""


def _path(*names: str) -> Read:
    def read(metrics: Mapping[str, Any]) -> float | None:
        value: Any = metrics
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    return read


def _load(which: int) -> Read:
    def read(metrics: Mapping[str, Any]) -> float | None:
        load = metrics["stage2"]["load"]
        return load and load[which]

    return read


FIGURES: Mapping[str, Read] = {
    FRECHET: _path("drawn", "frechet_distance"),
    KL: _path("stage2", "kl"),
    "accuracy": _path("drawn", "class_accuracy"),
    "cross-entropy": _path("stage2", "cross_entropy"),
    "saved": _path("saved", "linear"),
    "kl before": _path("stage1", "kl"),
    "mse before": _path("stage1", "block_mse"),
    "mse": _path("stage2", "block_mse"),
    **{
        f"{what} {when}": _path(stage, what, which)
        for what in ("tokens", "experts")
        for when, stage, which in (
            ("by chance", "fresh", "chance"),
            ("random", "fresh", "share"),
            ("learned", "stage1", "share"),
        )
    },
    "least load": _load(0),
    "most load": _load(1),
}
"""By name. `before` is after stage 1 and before stage 2."""


@dataclass(frozen=True)
class Spread:
    """A figure of one row over its seeds; the standard deviation is that of a sample, and 0 of one seed."""

    mean: float
    deviation: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """None without any."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values)) if values else None

    def text(self, form: str = ".3f") -> str:
        """For a table; the number of seeds where it is 1."""
        if self.seeds == 1:
            return f"{self.mean:{form}} (1 seed)"
        return f"{self.mean:{form}} ± {self.deviation:{form}}"


class Figures:
    """All figures of the finished cells."""

    def __init__(self, results: Iterable[Result]):
        self._results = list(results)

    def values(self, name: str) -> Values:
        """One figure by row and seed, where it is there."""
        found: dict[str, dict[int, float]] = {}
        for result in self._results:
            if (value := FIGURES[name](result.metrics)) is not None:
                found.setdefault(result.row, {})[result.seed] = value
        return found

    def positive(self, name: str) -> Values:
        """Those that have a logarithm: the teacher's distance to itself has none."""
        values = {row: {k: v for k, v in of.items() if v > 0} for row, of in self.values(name).items()}
        return {row: of for row, of in values.items() if of}

    def spread(self, row: str, name: str) -> Spread | None:
        """Over the row's seeds; None without any."""
        return Spread.of(list(self.values(name).get(row, {}).values()))

    def extreme(self, name: str, choose: Callable[[Iterable[float]], float], rows: Container[str]) -> float:
        """The least or the most of the rows' cells; NaN without any."""
        found = [value for row, of_row in self.values(name).items() if row in rows for value in of_row.values()]
        return choose(found) if found else math.nan
