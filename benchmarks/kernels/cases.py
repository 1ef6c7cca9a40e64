"""What the kernels are measured for, and what was found. Plain data: measuring is `bench.py`'s."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from actvar.benchmarks.pictures.measure import Spread
from actvar.export.plans.plugin_choice import EXPERTS, RANDOM

RECORDED = "recorded"


@dataclass(frozen=True)
class Cases:
    """What the routed FFN is measured for: numbers of tokens, widths, active experts, and the router's scores.

    `recorded` are scores of a trained router, [any number of tokens, N] fp32; None leaves them out.
    """

    tokens: tuple[int, ...] = (254, 384, 4096, 24576, 49152)
    widths: tuple[int, ...] = (1024, 1280, 1536, 1920)
    active: tuple[int, ...] = (4, 8, 12, 16)
    recorded: np.ndarray | None = None

    @property
    def routings(self) -> dict[str, np.ndarray | None]:
        """Scores by name; None for random ones."""
        return {RANDOM: None} if self.recorded is None else {RANDOM: None, RECORDED: self.recorded}


@dataclass(frozen=True)
class Ceiling:
    """What this GPU reaches: operations a second of a large product in fp16, bytes a second of a large copy."""

    operations: float
    bytes: float

    def reached(self, seconds: float, size: int, operations: int = 0) -> dict[str, float]:
        """Which parts of both the least bytes and the operations of some work come to in this time."""
        return {"bytes": size / seconds / self.bytes, "operations": operations / seconds / self.operations}


@dataclass(frozen=True)
class Moved:
    """A kernel that moves bytes: seconds, and those of a copy that reads and writes as many."""

    kernel: str
    shape: Mapping[str, int]
    bytes: int
    seconds: Spread
    copy: Spread

    @property
    def ratio(self) -> float:
        """Of medians: the kernel's time as a multiple of the copy's."""
        return self.seconds.median / self.copy.median

    def reached(self, ceiling: Ceiling) -> dict[str, float]:
        """Parts of the ceiling."""
        return ceiling.reached(self.seconds.median, self.bytes)


@dataclass(frozen=True)
class Routed:
    """The routed FFN by all tactics beside the dense FFN.

    Args:
        tokens, width, active, routing: the case.
        dense: seconds of both products by cuBLASLt, bias and GELU fused.
        static: the same with as many hidden neurons as the active experts have, all tokens alike.
        tactics: seconds by number.
        default: the tactic that the library takes of itself.
        difference: the largest from the dense result, where all experts are active and it was looked at.
    """

    tokens: int
    width: int
    active: int
    routing: str
    dense: Spread
    static: Spread
    tactics: Mapping[int, Spread]
    default: int
    difference: float | None

    @property
    def ratios(self) -> dict[int, float]:
        """Of medians, by tactic: its time as a multiple of the dense FFN's."""
        return {tactic: seconds.median / self.dense.median for tactic, seconds in self.tactics.items()}

    @property
    def static_ratio(self) -> float:
        """The same of static experts."""
        return self.static.median / self.dense.median

    @property
    def best(self) -> int:
        """The fastest tactic."""
        return min(self.ratios, key=self.ratios.__getitem__)

    @property
    def dense_operations(self) -> int:
        """Of the dense FFN."""
        return 16 * self.tokens * self.width**2

    @property
    def operations(self) -> int:
        """Of the active experts alone."""
        return self.dense_operations * self.active // EXPERTS

    @property
    def least_bytes(self) -> int:
        """Weights, tokens in and tokens out, each once, in fp16: hidden values need not leave the chip."""
        return 2 * (8 * self.width**2 + 5 * self.width + 2 * self.tokens * self.width)

    def reached_dense(self, ceiling: Ceiling) -> dict[str, float]:
        """Parts of the ceiling that the dense FFN reaches."""
        return ceiling.reached(self.dense.median, self.least_bytes, self.dense_operations)

    def reached(self, ceiling: Ceiling) -> dict[int, dict[str, float]]:
        """Parts of the ceiling, by tactic, by the operations and bytes that cannot be left out."""
        size = self.least_bytes + 4 * EXPERTS * self.tokens
        return {
            tactic: ceiling.reached(spread.median, size, self.operations) for tactic, spread in self.tactics.items()
        }
