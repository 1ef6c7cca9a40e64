"""How far two runs of the same thing lie apart, output by output, and how far they may: polygraphy's compare function.

Choices (the tokens that are drawn, those that a block keeps, the experts of a token) are compared as such: how many are
the same. All else is compared as numbers, by two errors: the largest absolute one, and the relative one,
|result - reference| / |reference| with Euclidean norms over the whole output of a batch. (A quotient for each element
would say nothing: some elements are almost 0.) The reference has made the numbers with the result's own choices, so
that they belong to the same computation; see `parity_runners.EagerGraphRunner`.

Where an output has a part for each block, each part is compared alone, and the worst counts.

Letters in shapes: B pictures, L tokens of a scale, D depth, R rows, K tokens kept, A active experts.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from polygraphy.comparator import BaseCompareFunc, IterationResult

from actvar.bundle.contract import HALF_PRECISIONS, PRECISIONS
from actvar.export.graphs.scale import EXPERTS, HIDDEN, KEPT, LOGITS
from actvar.export.parity.runners import FORCED, FREE, PIXELS, TOKENS

_OF_CODES = ("next_f_hat", "next_tokens_in")
_SHALLOW = ("modulation", "head_modulation", "start", *_OF_CODES)  # a few operations behind inputs
_DEEP = ("new_kv", LOGITS, "image")  # all blocks, or the whole decoder, behind them
_SELECTIONS = (KEPT, EXPERTS)
_OF_BLOCKS = (KEPT, EXPERTS, "new_kv", HIDDEN)
_IN_ORDER = ("modulation", "head_modulation", "start", *_OF_BLOCKS, LOGITS, TOKENS, "next_f_hat", "next_tokens_in")
"""Of a graph's outputs the order in which they are computed: the first that departs is nearest to the fault."""


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
        **dict.fromkeys(_SELECTIONS, Tolerance(equal=0.9999)),
        **dict.fromkeys(_SHALLOW, Tolerance(absolute=1e-5)),
        **dict.fromkeys(_DEEP, Tolerance(absolute=1e-4)),
        # Those of millions that are guided to some 50 lie farther: 1.2e-4 with AVX-512, 8.6e-5 without.
        LOGITS: Tolerance(absolute=2e-4, relative=1e-5),
        HIDDEN: Tolerance(relative=1e-5),  # its size is the model's own, and may be large
    },
    "fp16": {
        TOKENS: Tolerance(equal=0.99),
        **dict.fromkeys(_SELECTIONS, Tolerance(equal=0.99)),
        **dict.fromkeys((*_SHALLOW, *_DEEP, HIDDEN), Tolerance(relative=1e-2)),
    },
    "bf16": {
        TOKENS: Tolerance(equal=0.85),
        **dict.fromkeys(_SELECTIONS, Tolerance(equal=0.98)),
        **dict.fromkeys((*_SHALLOW, *_DEEP, HIDDEN), Tolerance(relative=5e-2)),
        "image": Tolerance(relative=1e-2),  # the decoder is in fp16
    },
    "int8": {
        TOKENS: Tolerance(equal=0.75),
        **dict.fromkeys(_SELECTIONS, Tolerance(equal=0.9)),
        **dict.fromkeys((*_SHALLOW, *_DEEP, HIDDEN), Tolerance(relative=5e-2)),
    },
    "fp16-weights": {
        TOKENS: Tolerance(equal=0.99),
        **dict.fromkeys(_SELECTIONS, Tolerance(equal=0.99)),
        **dict.fromkeys((*_SHALLOW, *_DEEP, HIDDEN), Tolerance(relative=1e-3)),
        "image": Tolerance(absolute=1e-4),  # the decoder is fp32's
    },
}
"""Of one graph that is given the reference's inputs, by precision and output (docs/parity.md)."""

ENCODER_TOLERANCES: dict[str, dict[str, Tolerance]] = {
    precision: {TOKENS: Tolerance(equal=0.99 if precision in HALF_PRECISIONS else 0.999)} for precision in PRECISIONS
}
"""Of the encoder's codes, each the nearest when those of the scales before it are the graph's: near-ties may part."""

CHAIN_TOLERANCES: dict[str, dict[str, Tolerance]] = {
    # 1 of 255: pixels are truncated, so that any rounding before may move them by one.
    "fp32": {TOKENS: Tolerance(equal=1.0), PIXELS: Tolerance(absolute=1)},
    # The first token that differs changes all that follow, and the picture may be as good: reported, not judged.
    "fp16": {TOKENS: Tolerance(), PIXELS: Tolerance()},
    "bf16": {TOKENS: Tolerance(), PIXELS: Tolerance()},
    "int8": {TOKENS: Tolerance(), PIXELS: Tolerance()},
    "fp16-weights": {TOKENS: Tolerance(), PIXELS: Tolerance()},
}
"""Of whole pictures, by precision and output."""

_SMOOTH_GRAPH: dict[str, dict[str, Tolerance]] = {
    # A mixture's temperature makes an error of the logits up to 148 times as large.
    "fp32": dict.fromkeys(_OF_CODES, Tolerance(relative=1e-3)),
}
_SMOOTH_CHAIN: dict[str, dict[str, Tolerance]] = {"fp32": {TOKENS: Tolerance(equal=0.99), PIXELS: Tolerance()}}


def graph_tolerances(precision: str, smooth: bool) -> dict[str, Tolerance]:
    """Of one graph's outputs. In half precision a mixture may be mostly another code: reported, not judged."""
    if not smooth:
        return GRAPH_TOLERANCES[precision]
    mixed = _SMOOTH_GRAPH.get(precision, dict.fromkeys((TOKENS, *_OF_CODES), Tolerance()))
    return {**GRAPH_TOLERANCES[precision], **mixed}


def chain_tolerances(precision: str, smooth: bool) -> dict[str, Tolerance]:
    """Of whole pictures. Where codes are mixed, rounding is not lost in the choice of a code, and grows by scales."""
    return _SMOOTH_CHAIN.get(precision, CHAIN_TOLERANCES[precision]) if smooth else CHAIN_TOLERANCES[precision]


@dataclass(frozen=True)
class Difference:
    """What was found for one output, over `pictures` pictures.

    Of numbers the two errors; of choices how many there are and how many are the same, and of drawn tokens picture
    number and place of the first that is not. `blocks` holds the same for each block, where an output has such parts.
    """

    tolerance: Tolerance
    pictures: int
    absolute: float | None = None
    relative: float | None = None
    choices: int | None = None
    equal: int | None = None
    first_unequal: tuple[int, int] | None = None
    blocks: tuple["Difference", ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all is within the tolerance, in every block; NaN is not."""
        if self.blocks:
            return all(block.passed for block in self.blocks)
        errors = (self.absolute, self.tolerance.absolute), (self.relative, self.tolerance.relative)
        share = self.equal / self.choices if self.equal is not None and self.choices else None
        return all(error is None or limit is None or error <= limit for error, limit in errors) and (
            share is None or self.tolerance.equal is None or share >= self.tolerance.equal
        )

    def __bool__(self) -> bool:
        """What polygraphy asks."""
        return self.passed

    def __add__(self, other: "Difference") -> "Difference":
        """Of both batches together."""
        return replace(
            self.beside(other),
            pictures=self.pictures + other.pictures,
            blocks=tuple(mine + others for mine, others in zip(self.blocks, other.blocks, strict=True)),
        )

    def beside(self, other: "Difference") -> "Difference":
        """Of two parts of the same pictures: the worse error, and all choices."""
        return replace(
            self,
            absolute=_worse(self.absolute, other.absolute),
            relative=_worse(self.relative, other.relative),
            choices=None if self.choices is None or other.choices is None else self.choices + other.choices,
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
        """The difference of each output that `result` has, in the order in which a graph computes them.

        Where the reference also brings what it gives at other choices, the difference to that is reported.
        """
        found = OrderedDict()
        for name in sorted(result, key=_rank):
            tolerance = self.tolerances[name.rpartition("/")[2]]
            found[name] = self._difference(name, tolerance, reference[name], result[name])
            for other in (name + FREE, name + FORCED):
                if other in reference:
                    mine, theirs = result[name], reference[other]
                    if name == EXPERTS and KEPT in result:  # perhaps of other tokens: each expert goes with its token
                        mine, theirs = _of_tokens(mine, result[KEPT]), _of_tokens(theirs, reference[KEPT + FREE])
                    found[other] = self._difference(name, Tolerance(), theirs, mine)
        return found

    def _difference(self, name: str, tolerance: Tolerance, reference: np.ndarray, result: np.ndarray) -> Difference:
        if name.endswith(TOKENS):
            return self._tokens(tolerance, reference, result)
        compare = self._selections if name in _SELECTIONS else self._numbers
        if name not in _OF_BLOCKS or len(reference) != len(result):
            return compare(tolerance, reference, result)
        blocks = tuple(compare(tolerance, *pair) for pair in zip(reference, result, strict=True))
        whole = blocks[0]
        for block in blocks[1:]:
            whole = whole.beside(block)
        return replace(whole, blocks=blocks)

    def _tokens(self, tolerance: Tolerance, reference_BL: np.ndarray, result_BL: np.ndarray) -> Difference:
        same_shape = reference_BL.shape == result_BL.shape
        equal_BL = reference_BL == result_BL if same_shape else np.zeros(reference_BL.shape, bool)
        unequal = np.argwhere(~equal_BL)
        first = (self.numbers[unequal[0, 0]], int(unequal[0, 1])) if len(unequal) else None
        equal = int(equal_BL.sum())
        return Difference(tolerance, len(equal_BL), choices=equal_BL.size, equal=equal, first_unequal=first)

    def _selections(self, tolerance: Tolerance, reference: np.ndarray, result: np.ndarray) -> Difference:
        """How many of the reference's are among the result's, whatever their place: the last axis is a set."""
        if reference.shape != result.shape:
            return Difference(tolerance, len(self.numbers), choices=reference.size, equal=0)
        equal = sum(np.intersect1d(mine, theirs).size for mine, theirs in _sets(reference, result))
        return Difference(tolerance, len(self.numbers), choices=reference.size, equal=equal)

    def _numbers(self, tolerance: Tolerance, reference: np.ndarray, result: np.ndarray) -> Difference:
        if reference.shape != result.shape:
            return Difference(tolerance, len(self.numbers), np.inf, np.inf)
        error = result.astype(np.float64) - reference
        of_error, of_reference = (float(np.linalg.norm(side)) for side in (error, reference.astype(np.float64)))
        relative = of_error / of_reference if of_reference else np.inf if of_error else 0.0
        return Difference(tolerance, len(self.numbers), float(np.abs(error).max()), relative)


def _rank(name: str) -> int:
    return _IN_ORDER.index(name) if name in _IN_ORDER else len(_IN_ORDER)


def _of_tokens(experts_DGBKA: np.ndarray, kept_DGBK: np.ndarray) -> np.ndarray:
    """A number for each pair of a token and an expert of it, [D, G, B, K * A]."""
    pairs_DGBKA = (kept_DGBK[..., None] << 32) + experts_DGBKA
    return pairs_DGBKA.reshape(*kept_DGBK.shape[:-1], -1)


def _sets(one: np.ndarray, other: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The sets that lie along the last axis, side by side."""
    return zip(one.reshape(-1, one.shape[-1]), other.reshape(-1, other.shape[-1]), strict=True)
