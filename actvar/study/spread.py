"""Whether two rows differ, from a few seeds each. Plain Python and numpy.

The rule: metrics are compared by their logarithms, so a difference is a ratio. All rows of a seed share its data and
its random numbers, so a metric is taken as row + seed + rest, by least squares over all finished cells; the spread of
the rest is pooled over all rows, as three seeds alone would say little of it. The ratio of two rows is known to within
twice its standard error, sigma * sqrt(2 / n) for n seeds that both have. With fewer seeds than two, or fewer than eight
degrees of freedom left, nothing is decided.

Letters in shapes: N cells, P parameters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Values = Mapping[str, Mapping[int, float]]
"""One metric, positive, by row and seed."""

MIN_SEEDS, MIN_FREEDOM, ERRORS = 2, 8, 2.0


@dataclass(frozen=True)
class Ratio:
    """How many times as large a metric is in one row as in another.

    Attributes:
        value: the geometric mean over the seeds that both have.
        low: its lower bound; 0 where nothing is known of the spread.
        high: its upper bound; infinity there.
        seeds: how many there are.
    """

    value: float
    low: float
    high: float
    seeds: int

    @property
    def known(self) -> bool:
        """Whether there are bounds."""
        return math.isfinite(self.high)


def ratio(values: Values, row: str, other: str) -> Ratio | None:
    """Of row to other; None without a seed that both have."""
    seeds = sorted(values.get(row, {}).keys() & values.get(other, {}).keys())
    if not seeds:
        return None
    mean = float(np.mean([math.log(values[row][seed] / values[other][seed]) for seed in seeds]))
    sigma = spread(values)
    if len(seeds) < MIN_SEEDS or sigma is None:
        return Ratio(math.exp(mean), 0.0, math.inf, len(seeds))
    margin = ERRORS * sigma * math.sqrt(2 / len(seeds))
    return Ratio(math.exp(mean), math.exp(mean - margin), math.exp(mean + margin), len(seeds))


def spread(values: Values) -> float | None:
    """Sigma of log(metric) about row + seed; None with too few degrees of freedom."""
    cells = [(row, seed) for row, by_seed in values.items() for seed in by_seed]
    rows, seeds = sorted({row for row, _ in cells}), sorted({seed for _, seed in cells})
    design_NP = np.array(
        [[row == other for other in rows] + [seed == other for other in seeds] for row, seed in cells], float
    ).reshape(len(cells), len(rows) + len(seeds))
    freedom = len(cells) - (int(np.linalg.matrix_rank(design_NP)) if cells else 0)
    if freedom < MIN_FREEDOM:
        return None
    logs_N = np.log([values[row][seed] for row, seed in cells])
    fitted_P = np.linalg.lstsq(design_NP, logs_N, rcond=None)[0]
    return float(np.sqrt(np.sum((logs_N - design_NP @ fitted_P) ** 2) / freedom))
