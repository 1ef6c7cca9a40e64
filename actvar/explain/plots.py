"""What an ActVAR's choices add up to over a batch, as a plot: coverage of tokens, and load of experts.

The numbers are `actvar.explain.choices`'s.

Letters in shapes: D blocks, N experts.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from actvar.errors import counted
from actvar.explain.choices import Choices, coverage, load, updates
from actvar.plotting import BLUE, FAINT, INK, new_figure, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEAD, _CURVES, _BLOCK, _AROUND = 11.0, 0.7, 3.6, 0.3, 1.1  # inches; a block is a row of the table of loads
_FEW, _MANY = 9, 24  # columns that have room for a percentage, and for a load
_TICKS = 12  # numbers below an axis, at most
_BAND = "#cfe0f3"
_OVER, _UNDER = (178, 62, 40), (36, 92, 160)
_FULL_COLOUR = 1.0  # of a load's distance from 1, in doublings
_DARK = 400  # the sum of a colour that wants white figures


def batch_figure(batch: Sequence[Choices], title: str) -> Image.Image:
    """Coverage by depth, how often tokens are updated, and each block's load of its experts.

    Raises:
        NoPlots: matplotlib is not installed.
    """
    file = io.BytesIO(rendered(lambda: _plot(batch, title), "png")[0])
    return Image.open(file).convert("RGB")


def load_colour(multiple: float) -> tuple[int, int, int]:
    """White for a fair share, blue below and red above, full at half and at twice of it."""
    distance = np.log2(max(multiple, 1e-9)) / _FULL_COLOUR
    end = np.array(_OVER if distance > 0 else _UNDER)
    red, green, blue = np.rint(255 + (end - 255) * min(abs(distance), 1)).astype(int).tolist()
    return red, green, blue


def _plot(batch: Sequence[Choices], title: str) -> "Figure":
    some = batch[0]
    heights = [_CURVES] if some.skips_tokens else []
    heights += [_BLOCK * some.kept_DL.shape[0] + _AROUND] if some.rests_experts else []
    heights = heights or [_AROUND]
    figure = new_figure(_WIDTH, _HEAD + sum(heights))
    drawn = counted(len(batch), "picture")
    note = f"Scale {some.scale}, {some.side}×{some.side} tokens, {drawn} of classes spread over all."
    figure.suptitle(f"{' '.join(title.split())}\n{note}", x=0.01, ha="left")
    parts = iter(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if some.skips_tokens:
        covered, often = next(parts).subplots(1, 2)
        _coverage(covered, coverage(batch))
        _updates(often, updates(batch))
    if some.rests_experts:
        _loads(next(parts).subplots(), load(batch))
    return figure


def _coverage(axes: "Axes", shares: np.ndarray) -> None:
    """Mean, least and most of the pictures, [pictures, D], and what one selection for all blocks would cover."""
    blocks, mean = np.arange(1, shares.shape[1] + 1), shares.mean(0)
    axes.fill_between(blocks, shares.min(0), shares.max(0), color=_BAND, label="least to most")
    axes.plot(blocks, mean, "o-", color=BLUE, linewidth=2, label="mean of the pictures")
    axes.axhline(mean[0], color=FAINT, linestyle="--", label="the first block's tokens throughout")
    if len(blocks) <= _FEW:
        for block, share in zip(blocks, mean, strict=True):
            axes.annotate(
                f"{share:.1%}", (block, share), (0, -9), textcoords="offset points", ha="center", va="top", color=BLUE
            )
    axes.set_title("Tokens updated by this block or one before it")
    axes.set_xlabel("block")
    axes.legend()
    _percentages(axes, 1.0, list(blocks))


def _updates(axes: "Axes", shares: np.ndarray) -> None:
    """A bar for each number of blocks, [D + 1]."""
    bars = axes.bar(range(len(shares)), shares, 0.72, color=BLUE)
    if len(shares) <= _FEW:
        axes.bar_label(bars, [f"{share:.1%}" for share in shares], padding=2)
    axes.set_title("Tokens by the number of blocks that updated them")
    axes.set_xlabel("blocks")
    _percentages(axes, float(np.ceil(shares.max() * 10) / 10), list(range(len(shares))))


def _loads(axes: "Axes", loads_DN: np.ndarray) -> None:
    """A row for each block, a column for each expert."""
    blocks, experts = loads_DN.shape
    colours_DN3 = np.array([[load_colour(float(value)) for value in loads_N] for loads_N in loads_DN], np.uint8)
    axes.imshow(colours_DN3, aspect="auto")
    for (block, expert), value in np.ndenumerate(loads_DN) if experts <= _MANY else ():
        ink = "white" if colours_DN3[block, expert].sum(dtype=int) < _DARK else INK
        axes.text(expert, block, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=9)
    axes.set_xticks(*_numbered(list(range(experts)), 1, _MANY))
    axes.set_yticks(range(blocks), [f"block {i + 1}" for i in range(blocks)])
    axes.set_title("Tokens that each expert was given, as a multiple of its fair share (1 is balanced)")
    axes.set_xlabel("expert; blue: less than its share, red: more, in full colour at half and at twice of it")
    axes.spines[:].set_visible(False)


def _percentages(axes: "Axes", top: float, columns: list[int]) -> None:
    """Shares upwards from 0 to `top`, and the columns' numbers."""
    ticks = [top * quarter / 4 for quarter in range(5)]
    axes.set_yticks(ticks, [f"{share * 100:g}%" for share in ticks])
    axes.set_ylim(0, 1.08 * top)
    axes.set_xlim(columns[0] - 0.5, columns[-1] + 0.5)
    axes.set_xticks(*_numbered(columns, 0, _TICKS))
    axes.grid(axis="y")


def _numbered(columns: list[int], first: int, most: int) -> tuple[list[int], list[str]]:
    """Every so manyth column, so that there are no more than `most`, and what is written there."""
    chosen = columns[:: -(-len(columns) // most)]
    return chosen, [str(column + first) for column in chosen]
