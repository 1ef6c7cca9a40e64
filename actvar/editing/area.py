"""Which tokens of a picture are kept: from a rectangle or a mask to a choice for every scale, as official VAR makes it.

The choice is made on the finest grid of tokens, and resized bilinearly to each scale's grid: what is over a half there
is kept. The first scale, of one token, is always kept: it holds what the whole picture is like.

Letters in shapes: H height and W width of a mask, S side of the finest grid, p side of a scale's grid, L = p * p.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from actvar.errors import ArgumentError
from actvar.scales import ScaleSchedule

R = TypeVar("R", bound="Rectangle")

_ALWAYS_KEPT = 3  # tokens of a scale up to which official VAR keeps all


@dataclass(frozen=True)
class Rectangle:
    """A part of a square picture, in shares of its side: 0 to 1 from the left and from the top.

    Raises:
        ArgumentError: a number is outside, or it has no width or no height.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        if not (0 <= self.x0 < self.x1 <= 1 and 0 <= self.y0 < self.y1 <= 1):
            raise ArgumentError(
                "A rectangle is X0,Y0,X1,Y1 in shares of the picture's side, as 0.25,0.25,0.75,0.75, with X0 below X1 "
                f"and Y0 below Y1; got {self.x0:g},{self.y0:g},{self.x1:g},{self.y1:g}."
            )

    @classmethod
    def parse(cls: type[R], text: str) -> R:
        """Read X0,Y0,X1,Y1.

        Raises:
            ArgumentError: it is something else.
        """
        try:
            x0, y0, x1, y1 = map(float, text.split(","))
        except ValueError:
            raise ArgumentError(
                "A rectangle is four numbers with commas between, X0,Y0,X1,Y1 in shares of the picture's side, as "
                f"0.25,0.25,0.75,0.75; got {text[:80]!r}."
            ) from None
        return cls(x0, y0, x1, y1)

    def inside(self, side: int) -> np.ndarray:
        """The tokens of a grid that lie in it, bool [S, S]; ends are rounded, as official VAR's are."""
        inside_SS = np.zeros((side, side), bool)
        inside_SS[round(self.y0 * side) : round(self.y1 * side), round(self.x0 * side) : round(self.x1 * side)] = True
        return inside_SS


@dataclass(frozen=True)
class Keep(Rectangle):
    """What is inside is kept, and all around it is drawn anew: out-painting."""


@dataclass(frozen=True)
class Replace(Rectangle):
    """What is inside is drawn anew, and all around it is kept: in-painting, or another class in its place."""


def kept_by_rectangle(area: Rectangle, side: int) -> np.ndarray:
    """The finest grid's kept tokens, bool [S, S]."""
    inside_SS = area.inside(side)
    return inside_SS if isinstance(area, Keep) else ~inside_SS


def kept_by_mask(replaced_HW: np.ndarray, side: int) -> np.ndarray:
    """The same by a mask of the square picture, whose side is a multiple of S: fp32 [H, W], 1 where it is drawn anew.

    A token is kept where more than half of its pixels are.
    """
    pixels = len(replaced_HW) // side
    shares_SS = replaced_HW.reshape(side, pixels, side, pixels).mean((1, 3))
    return 1 - shares_SS > 0.5


def require_both(kept_SS: np.ndarray) -> None:
    """Make sure that something is kept, and something drawn.

    Raises:
        ArgumentError: all is, or nothing.
    """
    grid = f"of the largest token map, {len(kept_SS)}x{len(kept_SS)},"
    if kept_SS.all():
        raise ArgumentError(f"All {grid} would be kept, and nothing drawn. Mark a larger part to be drawn anew.")
    if not kept_SS.any():
        raise ArgumentError(f"None {grid} would be kept. Keep a part of the picture, or draw a new one by `generate`.")


def kept_tokens(kept_SS: np.ndarray, schedule: ScaleSchedule) -> tuple[np.ndarray, ...]:
    """The kept tokens of every scale, bool [L], by those of the finest grid."""
    kept = kept_SS.astype(np.float32)
    scales = []
    for p in schedule.patch_nums:
        chosen_pp = resized(kept, p) > 0.5
        scales.append(np.ones(p * p, bool) if p * p <= _ALWAYS_KEPT else chosen_pp.ravel())
    return tuple(scales)


def resized(map_SS: np.ndarray, side: int) -> np.ndarray:
    """A square map resized bilinearly to [p, p], without smoothing: torch's `interpolate` with align_corners off."""
    if side == len(map_SS):
        return map_SS
    scale = float(np.float32(len(map_SS) / side))
    # Rounded once, as torch's fused arithmetic is: a token halfway between two is kept or not by the last bit of this.
    centres = np.maximum(scale * (np.arange(side) + 0.5) - 0.5, 0).astype(np.float32)
    first = centres.astype(int)
    second = np.minimum(first + 1, len(map_SS) - 1)
    share = centres - first.astype(np.float32)
    rows_pS = map_SS[first] * (1 - share)[:, None] + map_SS[second] * share[:, None]
    return rows_pS[:, first] * (1 - share) + rows_pS[:, second] * share
