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

from actvar.export.parity_compare import Difference, Tolerance

CHAIN = "chain"
"""Under this name, in place of a graph's, stands what was found for whole pictures."""


@dataclass(frozen=True)
class ParityReport:
    """All differences between graphs and model, by graph and output, in the order in which the graphs run.

    `source` says where the weights come from; the pictures are numbers 0 to pictures-1 of `seed`.
    """

    source: str
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
    def first_departure(self) -> tuple[str, str] | None:
        """The first graph that is not within tolerance, and its output."""
        return next((key for key, difference in self.found.items() if not difference.passed), None)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.first_departure is None:
            return f"Parity holds in {self.precision}: all graphs are within tolerance, over {self._count}."
        graph, output = self.first_departure
        what = f"{output}: {_departure(self.found[self.first_departure])}"
        where = "Each graph alone is within tolerance, the chain of them is not"
        if graph != CHAIN:
            where = f"The first graph that departs is {graph}"
        return f"Parity does not hold in {self.precision}. {where}: {what}."

    @property
    def first_flip(self) -> str | None:
        """Where whole pictures first draw another token, in words; None where all tokens are equal."""
        for (graph, output), difference in self.found.items():
            if graph == CHAIN and difference.first_unequal:
                return f"Whole pictures first draw other tokens at {output}: {_departure(difference)}."
        return None

    def table(self) -> Table:
        """One row for each output."""
        title = f"{self.source}, {self.precision}, {self._count} of seed {self.seed}"
        table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
        for heading in ("graph", "output", "max abs", "max rel", "choices equal", "tolerance", "verdict"):
            table.add_column(heading, justify="left" if heading in ("graph", "output", "verdict") else "right")
        before = ""
        for (graph, output), difference in self.found.items():
            if graph != before:
                table.add_section()
            table.add_row("" if graph == before else graph, output, *_cells(difference))
            before = graph
        return table

    @property
    def _count(self) -> str:
        return "1 picture" if self.pictures == 1 else f"{self.pictures} pictures"

    def to_json(self) -> str:
        """All of it; an error that is no number is a text."""
        graph, output = self.first_departure or (None, None)
        content = {
            "passed": self.passed,
            "first_departure": graph and {"graph": graph, "output": output},
            "first_flip": self.first_flip,
            **{name: getattr(self, name) for name in ("source", "precision", "pictures", "batch_size", "seed")},
            "outputs": [
                {"graph": graph, "output": output, "passed": difference.passed, **asdict(difference)}
                for (graph, output), difference in self.found.items()
            ],
        }
        return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"


def _departure(difference: Difference) -> str:
    limit = _limit(difference.tolerance)
    if difference.first_unequal and difference.choices is not None and difference.equal is not None:
        picture, token = difference.first_unequal
        unequal = difference.choices - difference.equal
        return f"{unequal} of {difference.choices} tokens differ, the first is token {token} of picture {picture}"
    return f"an error of {difference.absolute:.1e}, relative {difference.relative:.1e}, where {limit} is asked for"


def _cells(difference: Difference) -> tuple[str, ...]:
    errors = ("" if error is None else f"{error:.1e}" for error in (difference.absolute, difference.relative))
    tokens = "" if difference.choices is None else f"{difference.equal}/{difference.choices}"
    limit = _limit(difference.tolerance)
    if not difference.pictures:
        verdict = "skipped"
    elif not limit:
        verdict = "reported"
    else:
        verdict = "[green]within[/]" if difference.passed else "[bold red]departs[/]"
    return *errors, tokens, limit, verdict


def _limit(tolerance: Tolerance) -> str:
    if tolerance.equal is not None:
        return f"≥ {tolerance.equal:.0%}" if tolerance.equal < 1 else "all"
    if tolerance.absolute is not None:
        return f"abs ≤ {tolerance.absolute:g}"
    return "" if tolerance.relative is None else f"rel ≤ {tolerance.relative:g}"


def _plain(value: Any) -> Any:
    """JSON knows no infinity and no NaN."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
