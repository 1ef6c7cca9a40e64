"""Static and dynamic experts after fewer and after more steps of stage 2 than the study's. Plain Python.

The study finds static experts ahead where the paper finds dynamic ones. Two explanations can be told apart by training
both for longer. An expert that is fixed is given every token, one of 12 of 16 three quarters of them: if that is why,
static experts are ahead by as much as a third more steps bring, and are overtaken as steps bring less. Or a network can
be fitted better to one subset than to all that are chosen from: then they stay ahead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import fmean

from actvar.study.claims import KL
from actvar.study.figures import Figures, Spread
from actvar.study.matrix import FULL
from actvar.study.results import Result

STATIC = "static-experts"


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
        if result.row in (STATIC, FULL):
            of_steps.setdefault(result.settings["budget"]["stage2_steps"], []).append(result)
    return [_steps(steps, Figures(of_steps[steps])) for steps in sorted(of_steps)]


def _steps(steps: int, figures: Figures) -> Steps:
    values: Mapping[str, Mapping[int, float]] = figures.values(KL)
    static, dynamic = values.get(STATIC, {}), values.get(FULL, {})
    ratios = [static[seed] / dynamic[seed] for seed in sorted(static.keys() & dynamic.keys())]
    return Steps(steps, figures.spread(STATIC, KL), figures.spread(FULL, KL), ratios)
