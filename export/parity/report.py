"""What a comparison of graphs and model found: for people a table and a sentence, for programs JSON.

Knows outputs and their differences; how they were come by is `parity`'s.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from actvar.errors import counted
from actvar.export.parity.bisection import Departure, first_departure
from actvar.export.parity.compare import Difference, Tolerance

CHAIN = "chain"
"""Under this name, in place of a graph's, stands what was found for whole pictures."""

_HEAD = ("source", "engine", "precision", "pictures", "batch_size", "seed")
_FOUND = ("absolute", "relative", "choices", "equal")


@dataclass(frozen=True)
class ParityReport:
    """All differences between graphs and model, by graph and output, in the order in which they are computed.

    `source` says where the weights come from, `engine` what ran the graphs; the pictures are numbers 0 to pictures-1 of
    `seed`.
    """

    source: str
    engine: str
    precision: str
    pictures: int
    batch_size: int
    seed: int
    found: Mapping[tuple[str, str], Difference]

    @property
    def passed(self) -> bool:
        """Whether everything is within its tolerance."""
        return self.first_departure is None

    @property
    def first_departure(self) -> Departure | None:
        """Where graphs and model part first; None where all is within tolerance."""
        return first_departure(self.found)

    @property
    def verdict(self) -> str:
        """One sentence."""
        departure = self.first_departure
        if departure is None:
            return f"Parity holds in {self.precision}: all graphs are within tolerance, over {self._count}."
        where = "Each graph alone is within tolerance, the chain of them is not"
        if departure.graph != CHAIN:
            where = f"The first graph that departs is {departure.place}"
        what = f"{departure.output}: {_departure(departure.difference)}"
        return f"Parity does not hold in {self.precision}. {where}: {what}."

    @property
    def first_flip(self) -> str | None:
        """Where whole pictures first draw another token, in words; None where all tokens are equal."""
        for (graph, output), difference in self.found.items():
            if graph == CHAIN and difference.first_unequal:
                return f"Whole pictures first draw other tokens at {output}: {_departure(difference)}."
        return None

    def table(self) -> Table:
        """A row for each graph, and below it one for each of its outputs."""
        title = f"{self.source} in {self.engine}, {self.precision}, {self._count} of seed {self.seed}"
        table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
        for heading in ("output", "max abs", "max rel", "equal", "tolerance", "verdict"):
            table.add_column(heading, justify="left" if heading in ("output", "verdict") else "right")
        before = ""
        for (graph, output), difference in self.found.items():
            if graph != before:
                table.add_row(graph, style="bold")
            table.add_row(f"  {output}", *_cells(difference))
            before = graph
        return table

    @property
    def _count(self) -> str:
        return counted(self.pictures, "picture")

    def to_json(self) -> str:
        """All of it; an error that is no number is a text."""
        departure = self.first_departure
        content = {
            "passed": self.passed,
            "first_departure": departure
            and {name: getattr(departure, name) for name in ("graph", "block", "by", "output")},
            "first_flip": self.first_flip,
            **{name: getattr(self, name) for name in _HEAD},
            "outputs": [
                {"graph": graph, "output": output, "passed": difference.passed, **_row(difference)}
                for (graph, output), difference in self.found.items()
            ],
        }
        return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"


def _row(difference: Difference) -> dict[str, Any]:
    """Of each block only what was found in it."""
    row = asdict(difference)
    row["blocks"] = [
        {name: value for name, value in block.items() if name in _FOUND and value is not None}
        for block in row["blocks"]
    ]
    return row


def _departure(difference: Difference) -> str:
    limit = _limit(difference.tolerance)
    if difference.choices is not None and difference.equal is not None:
        differ = f"{difference.choices - difference.equal} of {counted(difference.choices, 'token')}"
        if difference.first_unequal:
            picture, token = difference.first_unequal
            return f"{differ} differ, the first is token {token} of picture {picture}"
        return f"{differ} differ, where {limit} are to be the same"
    return f"an error of {difference.absolute:.1e}, relative {difference.relative:.1e}, where {limit} is asked for"


def _cells(difference: Difference) -> tuple[str, ...]:
    errors = ("" if error is None else f"{error:.1e}" for error in (difference.absolute, difference.relative))
    tokens = "" if difference.choices is None else f"{difference.equal}/{difference.choices}"
    limit = _limit(difference.tolerance, short=True)
    judgement = "[green]within[/]" if difference.passed else "[bold red]departs[/]"
    return *errors, tokens, limit, judgement if limit else "reported"


def _limit(tolerance: Tolerance, short: bool = False) -> str:
    """What is allowed; "abs ≤ 0.0002, rel ≤ 1e-05", or in a narrow column "abs 2e-4, rel 1e-5"."""
    if tolerance.equal is not None:
        return f"≥ {100 * tolerance.equal:g}%" if tolerance.equal < 1 else "all"
    both = ("abs", tolerance.absolute), ("rel", tolerance.relative)
    limits = [(name, limit) for name, limit in both if limit is not None]
    if short:
        return ", ".join(f"{name} {limit:.0e}".replace("e-0", "e-") for name, limit in limits)
    return ", ".join(f"{name} ≤ {limit:g}" for name, limit in limits)


def _plain(value: Any) -> Any:
    """JSON knows no infinity and no NaN."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
