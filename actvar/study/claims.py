"""The paper's claims as comparisons of rows, and what the finished cells say of each. Plain Python.

A comparison holds where the whole interval of a ratio (see `actvar.study.spread`) lies on its side, is contradicted
where it lies on the other, and is open in between.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

from actvar.study.matrix import FULL
from actvar.study.spread import Ratio, Values, ratio


class Verdict(Enum):
    """What can be said."""

    HOLDS = "reproduced"
    FAILS = "not reproduced"
    OPEN = "undecided at this scale"


FRECHET, KL = "Fréchet distance", "held-out KL to the teacher"
LITTLE, GENTLE = 1.10, 1.5


@dataclass(frozen=True)
class Comparison:
    """The metric of `row` is more (or less) than `bound` times that of `other`; lower is better in all metrics."""

    row: str
    other: str
    bound: float = 1.0
    less: bool = False

    def judge(self, found: Ratio | None) -> Verdict:
        """By the ratio's bounds."""
        if found is None or not found.known:
            return Verdict.OPEN
        above, under = found.low > self.bound, found.high < self.bound
        holds, fails = (under, above) if self.less else (above, under)
        return Verdict.HOLDS if holds else Verdict.FAILS if fails else Verdict.OPEN


@dataclass(frozen=True)
class Claim:
    """One sentence.

    Attributes:
        text: what is claimed.
        source: the table or figure, or that the question is ours.
        all_of: comparisons that must all hold.
        none_of: comparisons of which none may hold: a contradiction fails the claim, and nothing else is asked of them.
        metrics: what may decide, the first that does; the others are shown.
    """

    text: str
    source: str
    all_of: Sequence[Comparison]
    none_of: Sequence[Comparison] = ()
    metrics: Sequence[str] = (FRECHET, KL)


@dataclass(frozen=True)
class Finding:
    """What one metric says of a claim: a ratio for each comparison of `all_of`, and the verdict.

    `against` are the comparisons of `none_of` that hold, by their places, with their ratios.
    """

    metric: str
    ratios: tuple[Ratio | None, ...]
    verdict: Verdict
    against: Mapping[int, Ratio | None] = field(default_factory=dict)


_BY_RATES = ("t50-25-e50", "t50-75-e25", "t50-50-e75", "t75-50-e75", FULL)

CLAIMS: Sequence[Claim] = (
    Claim(
        "Quality falls with the rates, in Table 2's order",
        "Table 2",
        (Comparison("t50-25-e50", FULL),),
        none_of=tuple(Comparison(higher, lower) for lower, higher in pairwise(_BY_RATES)),
    ),
    Claim(
        f"It falls gently: the lowest rates are less than {GENTLE:g} times as far from real pictures as the highest",
        "Table 2",
        (Comparison("t50-25-e50", FULL, GENTLE, less=True),),
        metrics=(FRECHET,),
    ),
    Claim(
        f"Each component costs little: the distance rises by less than {LITTLE - 1:.0%} by adding the other",
        "Table 3",
        (Comparison(FULL, "all-experts", LITTLE, less=True), Comparison(FULL, "all-tokens", LITTLE, less=True)),
        metrics=(FRECHET,),
    ),
    Claim("Dynamic tokens beat fixed ones", "Table 4", (Comparison("fixed-tokens", FULL),)),
    Claim("Dynamic weights beat static ones", "Table 5", (Comparison("static-experts", FULL),)),
    Claim(
        "Late scales are better left out of than early ones",
        "Table 6",
        (Comparison("early", FULL),),
        metrics=(FRECHET,),
    ),
    Claim(
        "16 experts beat 4 and 32",
        "Figure 9",
        (Comparison("experts-4", FULL), Comparison("experts-32", FULL)),
    ),
    Claim(
        "Dynamic weights beat static ones where 4 of 16 experts work in place of 12",
        "ours",
        (Comparison("static-experts-e25", "t50-75-e25"),),
    ),
    Claim(
        "A sharp label, given weight, beats the label as printed",
        "ours",
        (Comparison("label-printed", FULL),),
    ),
    Claim(
        "A label by what the experts' sum loses beats the paper's, by each expert alone",
        "ours",
        (Comparison(FULL, "label-together"),),
    ),
    Claim(
        "A label by the change of a token's logits beats the paper's, by that of the block's output",
        "ours",
        (Comparison(FULL, "label-logits"),),
    ),
)


ORDER_CLAIMS: Sequence[Claim] = (
    Claim(
        "An order from data beats the learned one, where 12 of 16 experts work",
        "ours",
        (Comparison("static-experts", "static-experts-data"),),
    ),
    Claim("The same where 4 of 16 work", "ours", (Comparison("static-experts-e25", "static-experts-data-e25"),)),
    Claim(
        "The learned order beats that of the experts' numbers",
        "ours",
        (Comparison("static-experts-index", "static-experts"),),
    ),
    Claim(
        "Static experts in an order from data beat dynamic ones, where 12 of 16 work",
        "ours",
        (Comparison(FULL, "static-experts-data"),),
    ),
    Claim("The same where 4 of 16 work", "ours", (Comparison("t50-75-e25", "static-experts-data-e25"),)),
)
"""Of rows that are made anew for them; see `actvar.study.matrix.FIXED_ORDER_ROWS`."""


def find(claim: Claim, metric: str, values: Values) -> Finding:
    """What one metric says."""
    ratios = tuple(ratio(values, each.row, each.other) for each in claim.all_of)
    verdicts = [each.judge(found) for each, found in zip(claim.all_of, ratios, strict=True)]
    opposed = {place: ratio(values, each.row, each.other) for place, each in enumerate(claim.none_of)}
    against = {place: found for place, found in opposed.items() if claim.none_of[place].judge(found) is Verdict.HOLDS}
    return Finding(metric, ratios, _together(verdicts, bool(against)), against)


def decide(claim: Claim, metrics: Mapping[str, Values]) -> tuple[Finding, Sequence[Finding]]:
    """The finding that decides, which is the first that is not open (or the first), and those of all metrics.

    Two metrics that contradict each other decide nothing.
    """
    found = [find(claim, metric, metrics[metric]) for metric in claim.metrics]
    decided = [each for each in found if each.verdict is not Verdict.OPEN]
    if len({each.verdict for each in decided}) > 1:
        return Finding("", found[0].ratios, Verdict.OPEN), found
    return (decided or found)[0], found


def _together(verdicts: Iterable[Verdict], contradicted: bool) -> Verdict:
    verdicts = list(verdicts)
    if contradicted or Verdict.FAILS in verdicts:
        return Verdict.FAILS
    return Verdict.OPEN if Verdict.OPEN in verdicts else Verdict.HOLDS
