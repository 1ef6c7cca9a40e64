"""The paper's own figures for the rows of the study: Tables 2 to 6, and what it says of Figure 9. Plain Python.

They are of VAR-d20 on ImageNet 256×256, where quality is FID (lower is better) and IS (higher is better).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from actvar.study.matrix import FULL


@dataclass(frozen=True)
class PaperLine:
    """A line of a table: the study's row, its words in the paper, and what the paper prints; None where it does not."""

    row: str
    words: str
    saved: float | None
    fid: float | None
    inception: float | None


@dataclass(frozen=True)
class PaperTable:
    """One table."""

    title: str
    lines: Sequence[PaperLine]


TABLES: Sequence[PaperTable] = (
    PaperTable(
        "Table 2: activation rates (tokens at scale 9, at scale 10; weights)",
        (
            PaperLine("t50-25-e50", "(50 %, 25 %; 50 %)", 0.432, 3.30, 256.8),
            PaperLine("t50-75-e25", "(50 %, 75 %; 25 %)", 0.399, 3.21, 265.1),
            PaperLine("t50-50-e75", "(50 %, 50 %; 75 %)", 0.328, 2.92, 274.1),
            PaperLine("t75-50-e75", "(75 %, 50 %; 75 %)", 0.282, 2.89, 277.1),
            PaperLine(FULL, "(75 %, 75 %; 75 %)", 0.212, 2.72, 290.4),
        ),
    ),
    PaperTable(
        "Table 3: the components (DW: dynamic weight activation, AT: adaptive token activation)",
        (
            PaperLine("all-experts", "w/o DW", 0.142, 2.67, 290.5),
            PaperLine("all-tokens", "w/o AT", 0.094, 2.70, 288.6),
            PaperLine(FULL, "w/ DW & AT", 0.212, 2.72, 290.4),
        ),
    ),
    PaperTable(
        "Table 4: fixed token pruning",
        (
            PaperLine("fixed-tokens", "fixed token pruning", None, 3.83, 242.4),
            PaperLine(FULL, "dynamic activating token", None, 2.72, 290.4),
        ),
    ),
    PaperTable(
        "Table 5: static weight pruning",
        (
            PaperLine("static-experts", "static weight pruning", None, 3.04, 274.2),
            PaperLine(FULL, "dynamic weight activation", None, 2.72, 290.4),
        ),
    ),
    PaperTable(
        "Table 6: active scales",
        (
            PaperLine("early", "(7, 8)", 0.081, 2.82, 282.7),
            PaperLine(FULL, "(9, 10)", 0.212, 2.72, 290.4),
        ),
    ),
    PaperTable(
        "Figure 9: number of experts (a curve without figures: 16 is best, 4 and 32 are worse)",
        (
            PaperLine("experts-4", "4", None, None, None),
            PaperLine("experts-8", "8", None, None, None),
            PaperLine(FULL, "16", None, 2.72, 290.4),
            PaperLine("experts-32", "32", None, None, None),
        ),
    ),
)
