"""Why static experts are ahead of dynamic ones in this study, where the paper finds the opposite. Plain Python.

Three explanations are tested. An expert that is fixed is given every token, one of 12 of 16 three quarters of them: if
a short stage 2 is why, more steps bring dynamic experts up. Or three quarters of an FFN are enough for all that it does
here, whichever they are: then dynamic experts win where few work. Or what is missing is made up for by the rest of the
network the better, the fewer different sets of experts there are to make up for: then stage 2 recovers the more, the
fewer there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb, exp, log
from statistics import fmean

from actvar.config import STATIC
from actvar.study.claims import KL, Comparison, Verdict
from actvar.study.figures import Figures, Spread
from actvar.study.matrix import FULL, Row
from actvar.study.results import Result
from actvar.study.spread import ratio

STATIC_EXPERTS = "static-experts"
MANY, FEW = Comparison(STATIC_EXPERTS, FULL), Comparison("static-experts-e25", "t50-75-e25")
"""Static over dynamic experts at equal rates, where 12 of 16 work and where 4 do: they hold where dynamic ones win."""
_MORE = 1.02  # a ratio that rises by less is the spread of two or three seeds
BY_SETS = (STATIC_EXPERTS, "experts-4", "experts-8", FULL, "experts-32")
"""Rows of equal rates, from one set of experts to the most."""


@dataclass(frozen=True)
class Steps:
    """What both rows come to after one number of steps.

    Attributes:
        steps: of stage 2.
        static, dynamic: L_f over the seeds, or None without any.
        ratios: L_f of static experts over that of dynamic ones, for each seed that both have.
    """

    steps: int
    static: Spread | None
    dynamic: Spread | None
    ratios: Sequence[float]

    @property
    def ratio(self) -> float | None:
        """The geometric mean over the seeds; None without any."""
        return exp(fmean(map(log, self.ratios))) if self.ratios else None


def by_steps(results: Sequence[Result]) -> list[Steps]:
    """Both rows by the steps that they were given, in order; other rows are left out."""
    of_steps: dict[int, list[Result]] = {}
    for result in results:
        if result.row in (STATIC_EXPERTS, FULL):
            of_steps.setdefault(result.settings["budget"]["stage2_steps"], []).append(result)
    return [_steps(steps, Figures(of_steps[steps])) for steps in sorted(of_steps)]


def sets_of_experts(row: Row) -> int:
    """How many different ones a block may choose for a token: one of a static row, else all of this size."""
    model = row.model()
    assert model.activation
    if model.activation.expert_choice == STATIC:
        return 1
    return comb(model.activation.experts, model.active_experts(len(model.schedule) - 1))


def recovered(figures: Figures, row: str) -> Spread | None:
    """Share of the L_f that stage 1 left which stage 2 takes away, over the seeds; None without any."""
    before, after = figures.positive("kl before").get(row, {}), figures.values(KL).get(row, {})
    return Spread.of([1 - after[seed] / before[seed] for seed in sorted(before.keys() & after.keys())])


def findings(results: Sequence[Steps], figures: Figures) -> str:
    """What the three tests say, in a sentence; nothing before all of their rows are there."""
    few = ratio(figures.positive(KL), FEW.row, FEW.other)
    shares = [share.mean for row in BY_SETS if (share := recovered(figures, row))]
    ratios = [each.ratio for each in results if each.ratio]
    if len(ratios) < 2 or few is None or len(shares) < len(BY_SETS):
        return ""
    closes = "bring dynamic experts up" if ratios[-1] > _MORE * ratios[0] else "do not bring dynamic experts up"
    turns = "ahead" if FEW.judge(few) is Verdict.HOLDS else "not ahead"
    falls = "falls" if all(more > less for more, less in pairwise(shares)) else "does not fall steadily"
    return (
        f"Found: more steps {closes}, with few experts at work they are {turns}, and what stage 2 recovers {falls} "
        "with the number of sets. (What is larger is easier to make smaller, so the last alone proves little; but "
        "static experts start behind and end ahead.)"
    )


def _steps(steps: int, figures: Figures) -> Steps:
    values: Mapping[str, Mapping[int, float]] = figures.positive(KL)
    static, dynamic = values.get(STATIC_EXPERTS, {}), values.get(FULL, {})
    ratios = [static[seed] / dynamic[seed] for seed in sorted(static.keys() & dynamic.keys())]
    return Steps(steps, figures.spread(STATIC_EXPERTS, KL), figures.spread(FULL, KL), ratios)
