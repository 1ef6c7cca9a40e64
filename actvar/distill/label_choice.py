"""Which labels stage 1 teaches by, and where a static order of experts comes from: names. Plain Python."""

from dataclasses import dataclass

ALONE, TOGETHER = "alone", "together"
BLOCK, LOGITS = "block", "logits"
SOFTENED, SHARP = "softened", "sharp"
LEARNED, DATA, INDEX = "learned", "data", "index"
"""A static order of experts: stage 1 learns it, or it is fixed before, from data (`actvar.distill.expert_order`) or as
the experts are numbered."""


@dataclass(frozen=True)
class Labels:
    """By what experts and tokens are ranked, and what is made of the best; the defaults are the paper's.

    Attributes:
        experts: "alone", by how near an expert's own output comes to the whole FFN's (before Eq. 5); or "together", by
            how much the sum of the kept experts loses with one of them.
        tokens: "block", by how much a block changes a token (before Eq. 10); or "logits", by how much the token's
            final logits change without what the block did.
        form: "softened", as printed (Eqs. 5-6, 10-11); or "sharp", nearly all of it shared evenly by the best.

    Raises:
        ValueError: an unknown name.
    """

    experts: str = ALONE
    tokens: str = BLOCK
    form: str = SOFTENED

    def __post_init__(self) -> None:
        choices = {"experts": (ALONE, TOGETHER), "tokens": (BLOCK, LOGITS), "form": (SOFTENED, SHARP)}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} of a label is {' or '.join(known)}, not {value!r}")


PAPER = Labels()
