"""How far two runs of the same thing lie apart, output by output, and how far they may: polygraphy's compare function.

Token ids are compared as such: how many are equal, and where the first differs. All else is compared as numbers, by two
errors: the largest absolute one, and the relative one, |result - reference| / |reference| with Euclidean norms over the
whole output of a batch. (A quotient for each element would say nothing: some elements are almost 0.)

f_hat and the next scale's input follow from the tokens that the graph itself has drawn. Where a token differs they are
of another picture, so they are compared for the pictures of which all tokens are equal; the token is counted anyhow.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from polygraphy.comparator import BaseCompareFunc, IterationResult

from actvar.export.graphs import LOGITS
from actvar.export.parity_runners import PIXELS, TOKENS

_FOLLOWS_TOKENS = ("next_f_hat", "next_tokens_in")
_SHALLOW = ("modulation", "head_modulation", "start", *_FOLLOWS_TOKENS)  # a few operations behind the inputs
_DEEP = ("new_kv", LOGITS, "image")  # all blocks, or the whole decoder, behind them


@dataclass(frozen=True)
class Tolerance:
    """How far a result may lie from its reference; None is not held to anything.

    `absolute` and `relative` are the largest errors, `equal` the least share of equal tokens.
    """

    absolute: float | None = None
    relative: float | None = None
    equal: float | None = None


GRAPH_TOLERANCES: dict[str, dict[str, Tolerance]] = {
    "fp32": {
        TOKENS: Tolerance(equal=1.0),
        **dict.fromkeys(_SHALLOW, Tolerance(absolute=1e-5)),
        **dict.fromkeys(_DEEP, Tolerance(absolute=1e-4)),
    },
    "fp16": {TOKENS: Tolerance(equal=0.99), **dict.fromkeys((*_SHALLOW, *_DEEP), Tolerance(relative=1e-2))},
}
"""Of one graph that is given the reference's inputs, by precision and output (DESIGN, Sec. 8)."""

CHAIN_TOLERANCES: dict[str, dict[str, Tolerance]] = {
    # 1 of 255: pixels are truncated, so that any rounding before may move them by one.
    "fp32": {TOKENS: Tolerance(equal=1.0), PIXELS: Tolerance(absolute=1)},
    # The first token that differs changes all that follow, and the picture may be as good: reported, not judged.
    "fp16": {TOKENS: Tolerance(), PIXELS: Tolerance()},
}
"""Of whole pictures, by precision and output."""


@dataclass(frozen=True)
class Difference:
    """What was found for one output, over `pictures` pictures.

    Of numbers the two errors; of tokens how many there are, how many are equal, and picture number and place of the
    first that is not.
    """

    tolerance: Tolerance
    pictures: int
    absolute: float | None = None
    relative: float | None = None
    tokens: int | None = None
    equal: int | None = None
    first_unequal: tuple[int, int] | None = None

    @property
    def passed(self) -> bool:
        """Whether all is within the tolerance; NaN is not."""
        errors = (self.absolute, self.tolerance.absolute), (self.relative, self.tolerance.relative)
        share = self.equal / self.tokens if self.equal is not None and self.tokens else None
        return all(error is None or limit is None or error <= limit for error, limit in errors) and (
            share is None or self.tolerance.equal is None or share >= self.tolerance.equal
        )

    def __bool__(self) -> bool:
        """What polygraphy asks."""
        return self.passed

    def __add__(self, other: "Difference") -> "Difference":
        """The same output of other pictures, which came later, taken in."""
        return replace(
            self,
            pictures=self.pictures + other.pictures,
            absolute=_worse(self.absolute, other.absolute),
            relative=_worse(self.relative, other.relative),
            tokens=None if self.tokens is None or other.tokens is None else self.tokens + other.tokens,
            equal=None if self.equal is None or other.equal is None else self.equal + other.equal,
            first_unequal=self.first_unequal or other.first_unequal,
        )


def _worse(a: float | None, b: float | None) -> float | None:
    return a if b is None else b if a is None else float(np.maximum(a, b))  # a NaN stays


@dataclass(frozen=True)
class OutputCompareFunc(BaseCompareFunc):
    """Compares what the graphs gave with what PyTorch gave for the same batch.

    Args:
        tolerances: by output; of `scale_01/token_ids` that of `token_ids` counts.
        numbers: of the batch's pictures.
    """

    tolerances: Mapping[str, Tolerance]
    numbers: Sequence[int]

    def __call__(self, reference: IterationResult, result: IterationResult) -> "OrderedDict[str, Difference]":
        """The difference of each output that `result` has."""
        agree_B = np.ones(len(self.numbers), bool)
        if TOKENS in result and result[TOKENS].shape == reference[TOKENS].shape:
            agree_B = (result[TOKENS] == reference[TOKENS]).all(axis=1)
        found = OrderedDict()
        for name, value in result.items():
            tolerance = self.tolerances[name.rpartition("/")[2]]
            if name.endswith(TOKENS):
                found[name] = self._tokens(tolerance, reference[name], value)
            elif name in _FOLLOWS_TOKENS:
                found[name] = self._numbers(tolerance, reference[name][agree_B], value[agree_B], int(agree_B.sum()))
            else:
                found[name] = self._numbers(tolerance, reference[name], value, len(agree_B))
        return found

    def _tokens(self, tolerance: Tolerance, reference_BL: np.ndarray, result_BL: np.ndarray) -> Difference:
        same_shape = reference_BL.shape == result_BL.shape
        equal_BL = reference_BL == result_BL if same_shape else np.zeros(reference_BL.shape, bool)
        unequal = np.argwhere(~equal_BL)
        first = (self.numbers[unequal[0, 0]], int(unequal[0, 1])) if len(unequal) else None
        equal = int(equal_BL.sum())
        return Difference(tolerance, len(equal_BL), tokens=equal_BL.size, equal=equal, first_unequal=first)

    def _numbers(self, tolerance: Tolerance, reference: np.ndarray, result: np.ndarray, pictures: int) -> Difference:
        if pictures == 0:
            return Difference(tolerance, 0)
        if reference.shape != result.shape:
            return Difference(tolerance, pictures, np.inf, np.inf)
        error = result.astype(np.float64) - reference
        of_error, of_reference = (float(np.linalg.norm(side)) for side in (error, reference.astype(np.float64)))
        relative = of_error / of_reference if of_reference else np.inf if of_error else 0.0
        return Difference(tolerance, pictures, float(np.abs(error).max()), relative)
