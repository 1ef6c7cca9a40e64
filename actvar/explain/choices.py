"""What the blocks of an ActVAR chose at one scale, and what it adds up to: coverage of tokens, load of experts.

Knows masks and nothing of models or drawings; `actvar.explain.record` fills it in. Plain numpy.

Letters in shapes: D blocks, L tokens of the scale, N experts, T the best few experts of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NOBODY = -1
"""In place of an expert: the block skipped this token, or the scale runs its FFN whole."""


@dataclass(frozen=True)
class Choices:
    """What the blocks chose for one picture at one scale, in the row that knows its class.

    Attributes:
        scale: its number, from 1.
        side: of its token map; tokens go by rows, left to right.
        kept_DL: bool, true where a block updated a token; all true where the scale keeps all tokens.
        used_DLN: bool, true where a block gave a token to an expert; a skipped token has none.
        best_DLT: the T experts that scored highest for a token, best first, or NOBODY.
    """

    scale: int
    side: int
    kept_DL: np.ndarray
    used_DLN: np.ndarray
    best_DLT: np.ndarray

    @property
    def skips_tokens(self) -> bool:
        """Whether any block skipped a token."""
        return not self.kept_DL.all()

    @property
    def rests_experts(self) -> bool:
        """Whether any expert rested for a token that its block updated."""
        return not self.used_DLN[self.kept_DL].all()

    @property
    def updates_L(self) -> np.ndarray:
        """How many blocks updated each token."""
        return self.kept_DL.sum(0)

    @property
    def covered_DL(self) -> np.ndarray:
        """Bool, true where a token was updated by this block or one before it; the last row is their union."""
        return np.logical_or.accumulate(self.kept_DL, axis=0)


def coverage(batch: Sequence[Choices]) -> np.ndarray:
    """Share of each picture's tokens that a block or one before it updated: [pictures, D]."""
    return np.stack([choices.covered_DL.mean(1) for choices in batch])


def updates(batch: Sequence[Choices]) -> np.ndarray:
    """Share of all tokens that were updated by 0, 1, ... D blocks: [D + 1], summing to 1."""
    blocks = batch[0].kept_DL.shape[0]
    counted = np.bincount(np.concatenate([choices.updates_L for choices in batch]), minlength=blocks + 1)
    return counted / counted.sum()


def load(batch: Sequence[Choices]) -> np.ndarray:
    """Tokens that each expert of each block was given, as a multiple of its fair share: [D, N]; 1 is balanced."""
    given_DN = np.sum([choices.used_DLN.sum(1) for choices in batch], axis=0)
    return given_DN / given_DN.mean(1, keepdims=True)
