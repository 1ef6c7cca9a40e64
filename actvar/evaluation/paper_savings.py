"""What the paper says that an ActVAR saves, and the same by our count.

Plain Python. What is open in the paper's count is in docs/paper-notes.md, Sec. 4.

Letters: D depth, C width (H in the paper), L tokens of a scale, N experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from actvar.config import PRESETS, Activation, ModelConfig
from actvar.flops import ROWS, ScaleWork, scale_work, transformer_work


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's tables.

    Attributes:
        table: its number.
        preset: the model.
        activation: scales and rates.
        saved: the share of operations saved that is printed.
    """

    table: int
    preset: str
    activation: Activation
    saved: float

    @property
    def model(self) -> ModelConfig:
        """The ActVAR that the row is about."""
        return replace(PRESETS[self.preset], activation=self.activation)


def _row(
    table: int,
    preset: str,
    saved: float,
    tokens: tuple[float, float],
    weights: float,
    scales: tuple[int, int] = (9, 10),
) -> PaperRow:
    return PaperRow(table, preset, Activation(16, scales, tokens, (weights, weights)), saved)


PAPER_ROWS: Sequence[PaperRow] = (
    _row(1, "d16", 0.202, (0.75, 0.75), 0.75),
    _row(1, "d20", 0.212, (0.75, 0.75), 0.75),
    _row(1, "d24", 0.218, (0.75, 0.75), 0.75),
    _row(1, "d30", 0.223, (0.75, 0.75), 0.75),
    _row(2, "d20", 0.432, (0.50, 0.25), 0.50),
    _row(2, "d20", 0.399, (0.50, 0.75), 0.25),
    _row(2, "d20", 0.328, (0.50, 0.50), 0.75),
    _row(2, "d20", 0.282, (0.75, 0.50), 0.75),
    _row(2, "d20", 0.212, (0.75, 0.75), 0.75),
    _row(3, "d20", 0.142, (0.75, 0.75), 1.00),
    _row(3, "d20", 0.094, (1.00, 1.00), 0.75),
    _row(3, "d20", 0.212, (0.75, 0.75), 0.75),
    _row(6, "d20", 0.081, (0.75, 0.75), 0.75, scales=(7, 8)),
    _row(6, "d20", 0.212, (0.75, 0.75), 0.75),
)


@dataclass(frozen=True)
class Savings:
    """The share of a dense transformer's operations that an ActVAR saves, decoder left out.

    Attributes:
        linear: tokens' own work left out, less what choosing costs: the nearest to the paper's tables.
        all: everything left out; attention also asks and is asked for less.
        printed: Eq. 12 as it stands.
    """

    linear: float
    all: float
    printed: float


def savings(model: ModelConfig) -> Savings:
    """By the three counts; 0 of a dense model."""
    dense = model.dense()
    whole = transformer_work(dense)
    scales = range(len(model.schedule))
    linear = sum(_kept_back(scale_work(dense, si), scale_work(model, si)) for si in scales)
    return Savings(linear / whole, 1 - transformer_work(model) / whole, equation_12(model) / whole)


def equation_12(model: ModelConfig, rows: int = ROWS) -> float:
    """Operations saved by the paper's Eq. 12, as printed: with shares, not whole tokens, and its own coefficients."""
    saved, activation, width = 0.0, model.activation, model.width
    if activation is None:
        return saved
    for scale, token_rate, expert_rate in zip(
        activation.scales, activation.token_rates, activation.expert_rates, strict=True
    ):
        tokens, eta, mu = model.schedule.tokens[scale - 1], 1 - token_rate, 1 - expert_rate
        reduction = 8 * eta * tokens * width**2 * (1 + 2 * mu)
        overhead = 2 * tokens * width * (1 + (1 - eta) * activation.experts)
        saved += rows * model.depth * (reduction - overhead)
    return saved


def _kept_back(dense: ScaleWork, active: ScaleWork) -> int:
    return dense.linear - active.linear - active.choosing
