"""What an ActVAR's choices add up to over a batch, as plots: coverage of tokens, and load of experts.

The figures are `actvar.explain.choices`'s. Lines are drawn large and made smaller, as Pillow's own have steps.

Letters in shapes: D blocks, N experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from actvar.explain.choices import Choices, coverage, load, updates
from actvar.explain.panels import FAINT, INK, PAPER, SMALL, below, beside, box, figure, words

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 620, 340, 64, 30, 28
_FINE = 3  # pixels drawn for each that is shown
_MEAN, _SPREAD, _GRID = "#1f5fa8", "#cfe0f3", "#e4e7eb"
_CELL, _DARK = 64, 400  # of the table of loads: a column's width, and the sum of a colour that wants white figures
_FEW = 9  # columns that have room for figures
_OVER, _UNDER = (178, 62, 40), (36, 92, 160)
_FULL_COLOUR = 1.0  # of a load's distance from 1, in doublings


@dataclass(frozen=True)
class _Axes:
    """A plot's frame: blocks to the right, shares upwards."""

    columns: int
    top: float

    @property
    def ticks(self) -> tuple[float, ...]:
        """Where there are lines."""
        return tuple(self.top * quarter / 4 for quarter in range(5))

    def x(self, column: float) -> float:
        """Pixels, for a column's middle."""
        return _LEFT + (column + 0.5) * (_WIDTH - _LEFT) / self.columns

    def y(self, share: float) -> float:
        """Pixels."""
        return _HEIGHT - _BOTTOM - share / self.top * (_HEIGHT - _BOTTOM - _TOP)


def batch_figure(batch: Sequence[Choices], title: str) -> Image.Image:
    """Coverage by depth, how often tokens are updated, and each block's load of its experts."""
    some = batch[0]
    note = f"Scale {some.scale}, {some.side}x{some.side} tokens, {len(batch)} pictures of classes spread over all."
    parts = []
    if some.skips_tokens:
        covered = below([words("tokens updated by this block or one before it"), _coverage(batch)], 10)
        often = below([words("tokens by the number of blocks that updated them"), _updates(batch)], 10)
        parts.append(beside([covered, often], 40))
    if some.rests_experts:
        heading = words("tokens that each expert was given, as a multiple of its fair share (1 is balanced)")
        parts.append(below([heading, _loads(batch)], 10))
    return figure(title, note, parts)


def load_colour(multiple: float) -> tuple[int, int, int]:
    """White for a fair share, blue below and red above, full at half and at twice of it."""
    distance = np.log2(max(multiple, 1e-9)) / _FULL_COLOUR
    end = np.array(_OVER if distance > 0 else _UNDER)
    red, green, blue = np.rint(255 + (end - 255) * min(abs(distance), 1)).astype(int).tolist()
    return red, green, blue


def _coverage(batch: Sequence[Choices]) -> Image.Image:
    """Mean, least and most of the pictures, and what one selection for all blocks would cover."""
    found = coverage(batch)  # [pictures, D]
    blocks = found.shape[1]
    axes = _Axes(blocks, 1.0)
    image, draw = _canvas(axes)
    least, most, mean = found.min(0), found.max(0), found.mean(0)
    upper = [_fine(axes.x(i), axes.y(value)) for i, value in enumerate(most)]
    lower = [_fine(axes.x(i), axes.y(value)) for i, value in enumerate(least)]
    line = [_fine(axes.x(i), axes.y(value)) for i, value in enumerate(mean)]
    if blocks > 1:
        draw.polygon([*upper, *reversed(lower)], fill=_SPREAD)
        draw.line(line, fill=_MEAN, width=3 * _FINE)
    fixed = axes.y(mean[0])
    for left in range(_LEFT, _WIDTH, 14):
        draw.line((_fine(left, fixed), _fine(left + 7, fixed)), fill=FAINT, width=2 * _FINE)
    for x, y in line:
        draw.ellipse((x - 5 * _FINE, y - 5 * _FINE, x + 5 * _FINE, y + 5 * _FINE), fill=_MEAN)
    plot = _finished(image, axes, first=1)
    for i in range(blocks) if blocks <= _FEW else (0, blocks - 1):
        _write(plot, f"{mean[i]:.1%}", axes.x(i), axes.y(mean[i]) + 10, _MEAN)
    key = (
        (INK, "blocks"),
        (_MEAN, "mean"),
        (FAINT, "band: least to most"),
        (FAINT, "dashes: the first block's tokens throughout"),
    )
    return below([plot, beside([words(text, SMALL, colour) for colour, text in key])])


def _updates(batch: Sequence[Choices]) -> Image.Image:
    """A bar for each number of blocks."""
    shares = updates(batch)
    axes = _Axes(len(shares), float(np.ceil(shares.max() * 10) / 10))
    image, draw = _canvas(axes)
    half = 0.36 * (_WIDTH - _LEFT) / len(shares)
    for n, share in enumerate(shares):
        draw.rectangle((_fine(axes.x(n) - half, axes.y(share)), _fine(axes.x(n) + half, axes.y(0))), fill=_MEAN)
    plot = _finished(image, axes, first=0)
    for n, share in enumerate(shares) if len(shares) <= _FEW else ():
        _write(plot, f"{share:.1%}", axes.x(n), axes.y(share) - 22, INK)
    return below([plot, words("blocks", SMALL)])


def _loads(batch: Sequence[Choices]) -> Image.Image:
    """A row for each block, a column for each expert."""
    loads_DN = load(batch)
    rows = [beside([box("expert", _CELL * 2), *(box(str(n + 1), _CELL) for n in range(loads_DN.shape[1]))], 2)]
    for i, loads_N in enumerate(loads_DN):
        colours = [load_colour(float(value)) for value in loads_N]
        cells = [
            box(f"{value:.2f}", _CELL, _CELL // 2, PAPER if sum(colour) < _DARK else INK, colour)
            for value, colour in zip(loads_N, colours, strict=True)
        ]
        rows.append(beside([box(f"block {i + 1}", _CELL * 2, _CELL // 2), *cells], 2))
    return below(rows, 2)


def _canvas(axes: _Axes) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A plot's area with its grid, in fine pixels."""
    image = Image.new("RGB", (_WIDTH * _FINE, _HEIGHT * _FINE), PAPER)
    draw = ImageDraw.Draw(image)
    for share in axes.ticks:
        draw.line((_fine(_LEFT, axes.y(share)), _fine(_WIDTH, axes.y(share))), fill=_GRID, width=_FINE)
    return image, draw


def _finished(image: Image.Image, axes: _Axes, first: int) -> Image.Image:
    """The plot at its size, with shares at the left and the columns' numbers, from `first`, below."""
    plot = image.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
    for share in axes.ticks:
        plot.paste(words(f"{share * 100:g}%", SMALL, FAINT), (0, round(axes.y(share)) - 10))
    for i in range(0, axes.columns, -(-axes.columns // 12)):
        _write(plot, str(i + first), axes.x(i), _HEIGHT - _BOTTOM + 8, FAINT)
    return plot


def _write(plot: Image.Image, text: str, middle: float, top: float, colour: str) -> None:
    label = words(text, SMALL, colour)
    plot.paste(label, (round(min(middle - label.width / 2, _WIDTH - label.width)), max(0, round(top))))


def _fine(x: float, y: float) -> tuple[float, float]:
    return x * _FINE, y * _FINE
