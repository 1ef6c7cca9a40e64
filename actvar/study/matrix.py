"""The study's matrix: rows, each one model that the paper's tables are about or that we ask about, times seeds.

Knows what is compared and in which order it is made; not how. A row that several tables share is here once. Plain
Python.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from actvar.config import FIXED, MINI, STATIC, Activation, ModelConfig
from actvar.distill.label_choice import DATA, INDEX, LEARNED, LOGITS, PAPER, SHARP, TOGETHER, Labels

SEEDS = (0, 1, 2)
"""A seed decides the routers' first values, the order of the data, and the pictures that are drawn."""

TAUGHT = Labels(form=SHARP)
"""What rows are taught by: of the label as printed, and of an alpha of 0.05, a short stage 1 learns next to nothing."""

DENSE, TRAINED_ON, FULL = "var", "var-trained-on", "t75-75-e75"


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        name: in names of files.
        words: for a person.
        activation: what it leaves out; None is VAR-mini itself.
        trained: False for the teacher as it is.
        labels: what stage 1 teaches to choose.
        alpha: how much that weighs beside the classification loss (Eq. 19).
        expert_order: where a static order of experts comes from.
    """

    name: str
    words: str
    activation: Activation | None
    trained: bool = True
    labels: Labels = TAUGHT
    alpha: float = 1.0
    expert_order: str = LEARNED

    def model(self, teacher: ModelConfig = MINI) -> ModelConfig:
        """Its configuration, made of the teacher's."""
        return replace(teacher, activation=self.activation)


@dataclass(frozen=True)
class Cell:
    """One row with one seed: what is run in one go, and written as one file."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.row.name}-seed{self.seed}"


def _rates(first: float, second: float, experts: float) -> Activation:
    return Activation(token_rates=(first, second), expert_rates=(experts, experts))


ROWS: Sequence[Row] = (
    # Those that a claim rests on come first: a study that is stopped early has most of them.
    Row(FULL, "ActVAR (75 %, 75 %; 75 %), 16 experts, scales 9 and 10", Activation()),
    Row("fixed-tokens", "fixed token pruning", Activation(token_choice=FIXED)),
    Row("static-experts", "static weight pruning", Activation(expert_choice=STATIC)),
    Row("t50-25-e50", "rates (50 %, 25 %; 50 %)", _rates(0.5, 0.25, 0.5)),
    Row("early", "scales 7 and 8", Activation(scales=(7, 8))),
    Row("experts-4", "4 experts", Activation(experts=4)),
    Row("experts-32", "32 experts", Activation(experts=32)),
    Row("label-together", "experts ranked by what their sum loses", Activation(), labels=Labels(TOGETHER, form=SHARP)),
    Row(
        "label-logits", "tokens ranked by their logits' change", Activation(), labels=Labels(tokens=LOGITS, form=SHARP)
    ),
    Row("label-printed", "labels and alpha as printed", Activation(), labels=PAPER, alpha=0.05),
    Row("all-experts", "without dynamic weights", _rates(0.75, 0.75, 1.0)),
    Row("all-tokens", "without adaptive tokens", _rates(1.0, 1.0, 0.75)),
    Row("t50-75-e25", "rates (50 %, 75 %; 25 %)", _rates(0.5, 0.75, 0.25)),
    Row("t50-50-e75", "rates (50 %, 50 %; 75 %)", _rates(0.5, 0.5, 0.75)),
    Row("t75-50-e75", "rates (75 %, 50 %; 75 %)", _rates(0.75, 0.5, 0.75)),
    # What the others are held against.
    Row(DENSE, "VAR-mini, the teacher", None, trained=False),
    Row(TRAINED_ON, "VAR-mini, trained on by stage 2's budget", _rates(1.0, 1.0, 1.0)),
    Row("experts-8", "8 experts", Activation(experts=8)),
    # Where so few experts work that it should matter which.
    Row(
        "static-experts-e25",
        "static weight pruning, rates (50 %, 75 %; 25 %)",
        replace(_rates(0.5, 0.75, 0.25), expert_choice=STATIC),
    ),
)
"""Of the study itself."""

FIXED_ORDER_ROWS: Sequence[Row] = (
    Row("static-experts-data", "static experts, order from data", Activation(expert_choice=STATIC), expert_order=DATA),
    Row(
        "static-experts-data-e25",
        "static experts, order from data, rates (50 %, 75 %; 25 %)",
        replace(_rates(0.5, 0.75, 0.25), expert_choice=STATIC),
        expert_order=DATA,
    ),
    Row(
        "static-experts-index",
        "static experts, as they are numbered",
        Activation(expert_choice=STATIC),
        expert_order=INDEX,
    ),
)
"""What the order is worth that static experts are given; beside rows of the study, all made anew."""

ALL_ROWS: Sequence[Row] = (*ROWS, *FIXED_ORDER_ROWS)


def _cells(rows: Sequence[Row]) -> Sequence[Cell]:
    """In the order in which they are made: all rows of a seed before the next seed."""
    return tuple(Cell(row, seed) for seed in SEEDS for row in rows)


CELLS, ALL_CELLS = _cells(ROWS), _cells(ALL_ROWS)


def row_named(name: str) -> Row:
    """The row of this name; there is one."""
    return next(row for row in ALL_ROWS if row.name == name)
