"""The cells of a study one after the other: what is there is left alone, and time that is given is kept to.

Knows no training and no model: a cell is measured by a function. Plain Python.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actvar.errors import counted
from actvar.study.matrix import Cell
from actvar.study.results import Result

Measure = Callable[[Cell], Result]
"""Trains and measures a cell; may take minutes."""
Tell = Callable[[str], None]
"""One line for a person."""


@dataclass(frozen=True)
class Plan:
    """What a run is to do.

    Attributes:
        cells: all that are wanted, in order.
        done: names of those that are finished.
        limit_seconds: no cell is started that would not end in it, judged by the mean of those of this run; None is
            no limit.
        expected_seconds: what a cell took before this run; 0 if that is not known.
    """

    cells: Sequence[Cell]
    done: frozenset[str]
    limit_seconds: float | None = None
    expected_seconds: float = 0.0

    @property
    def left(self) -> list[Cell]:
        """Those to make."""
        return [cell for cell in self.cells if cell.name not in self.done]


def run(plan: Plan, measure: Measure, tell: Tell, now: Callable[[], float] = time.monotonic) -> int:
    """Make what is left, until the time is up; returns how many cells were made.

    Rows that are not trained take a fraction of a cell's time, and are not counted in the mean.
    """
    begun, took = now(), list[float]()
    made, left = 0, plan.left
    for place, cell in enumerate(left):
        mean = sum(took) / len(took) if took else plan.expected_seconds
        if plan.limit_seconds is not None and now() - begun + mean > plan.limit_seconds:
            tell(
                f"Stopped before {cell.name}, which takes some {mean / 60:.0f} min: "
                f"{len(left) - place} of {counted(len(plan.cells), 'cell')} are left."
            )
            break
        tell(f"{cell.name}: {cell.row.words}, seed {cell.seed} ({len(left) - place} left)")
        start = now()
        measure(cell)
        made += 1
        if cell.row.trained:
            took.append(now() - start)
    return made
