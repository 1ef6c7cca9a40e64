"""Which labels stage 1 teaches by: names, for settings and the command line. Plain Python."""

from dataclasses import dataclass

ALONE, TOGETHER = "alone", "together"
BLOCK, LOGITS = "block", "logits"


@dataclass(frozen=True)
class Labels:
    """By what experts and tokens are ranked; the defaults are the paper's.

    Attributes:
        experts: "alone", by how near an expert's own output comes to the whole FFN's (before Eq. 5); or "together", by
            how much the sum of the kept experts loses with one of them.
        tokens: "block", by how much a block changes a token (before Eq. 10); or "logits", by how much the token's
            final logits change without what the block did.

    Raises:
        ValueError: an unknown name.
    """

    experts: str = ALONE
    tokens: str = BLOCK

    def __post_init__(self) -> None:
        for name, known in (("experts", (ALONE, TOGETHER)), ("tokens", (BLOCK, LOGITS))):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"the label of {name} is {' or '.join(known)}, not {value!r}")


PAPER = Labels()
