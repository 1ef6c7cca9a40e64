"""Where graphs and model part: the first graph, the first block in it, and what of the block.

Each graph had the reference's inputs, and each block behind it the same choices on both sides. So what a block departs
by is its own, up to the rounding that all before it have added up; and that is what tolerances leave room for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from actvar.export.graphs.scale import EXPERTS, HIDDEN, KEPT
from actvar.export.parity.compare import Difference

_NUMBERS = "numbers"
_BY = {KEPT: "choice of tokens", EXPERTS: "choice of experts"}


@dataclass(frozen=True)
class Departure:
    """The first output that is not within its tolerance, and its difference: the block's, where a block is at fault.

    `block` counts from 0, as parameters and nodes do; `by` says in words what of the block departs. `block` is None
    where all blocks of the graph are within tolerance, or the graph gives no look into them, which `inside` says.
    """

    graph: str
    output: str
    difference: Difference
    inside: bool
    block: int | None = None
    by: str | None = None

    @property
    def place(self) -> str:
        """In words."""
        if not self.inside:
            return self.graph
        if self.block is None:
            return f"{self.graph}, behind its blocks"
        return f"{self.graph}, and in it blocks.{self.block}, by its {self.by}"


def first_departure(found: Mapping[tuple[str, str], Difference]) -> Departure | None:
    """The first of all differences that is not within its tolerance; None if all are.

    Args:
        found: by graph and output, in the order in which they are computed.
    """
    key = next((key for key, difference in found.items() if not difference.passed), None)
    if key is None:
        return None
    graph, output = key
    of_graph = {name: difference for (place, name), difference in found.items() if place == graph}
    inside = HIDDEN in of_graph
    departing = [
        (block, name, difference)
        for name, whole in of_graph.items()
        for block, difference in enumerate(whole.blocks)
        if not difference.passed
    ]
    if not inside or not departing:
        return Departure(graph, output, found[key], inside)
    first = min(block for block, _, _ in departing)
    in_first = {name: difference for block, name, difference in departing if block == first}
    output = _nearest(in_first)
    return Departure(graph, output, in_first[output], inside, first, _BY.get(output, _NUMBERS))


def _nearest(departing: Mapping[str, Difference]) -> str:
    """Of one block's departing outputs the one that explains the others.

    A block chooses its tokens by its input, on which both sides still agree. Numbers are compared at equal choices, so
    that no choice explains them; but experts are chosen by numbers.
    """
    return next(name for name in (KEPT, HIDDEN, "new_kv", EXPERTS) if name in departing)
