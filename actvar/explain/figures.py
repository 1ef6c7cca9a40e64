"""What an ActVAR chose, as figures: the paper's Figures 5 and 6 for any picture.

Knows `actvar.explain.choices` and colours. What a batch adds up to is `actvar.explain.plots`'s.

Letters in shapes: H height and W width of a picture, L tokens of the scale, D blocks, N experts, T the best few of
them.
"""

import colorsys

import numpy as np
from PIL import Image, ImageDraw

from actvar.errors import counted
from actvar.explain.choices import NOBODY, Choices
from actvar.explain.panels import FAINT, LABEL, PAPER, SMALL, below, beside, box, figure, in_rows, words

_SKIPPED, _RESTING = (238, 241, 245), (184, 193, 204)
_FADED, _FADE = 246, 0.86  # towards almost white
_SEQUENCE = ((247, 251, 255), (158, 202, 225), (49, 130, 189), (8, 48, 107))
_WIDE, _RANKED, _TINY = 256, 208, 80  # pixels of a panel, at most
_COLUMNS = 6  # panels beside each other
_RANKS = ("best", "second", "third")


def tokens_figure(picture_HW3: np.ndarray, choices: Choices, title: str) -> Image.Image:
    """The picture, which of its tokens each block updated, their union, and how often each was (Figure 6)."""
    blocks, tokens = choices.kept_DL.shape
    cell = max(1, _WIDE // choices.side)
    shown = Image.fromarray(picture_HW3).resize((cell * choices.side,) * 2, Image.Resampling.BICUBIC)
    covered_L = choices.covered_DL[-1]

    def panel(image: Image.Image, label: str) -> Image.Image:
        return below([image, words(label)])

    def masked(label: str, kept_L: np.ndarray) -> Image.Image:
        return panel(_faded(shown, kept_L, choices.side), f"{label}: {kept_L.sum()} of {tokens}")

    often = beside([_often(choices, cell), _ramp(blocks, cell * choices.side)], 10)
    first = [
        panel(shown, "the picture"),
        masked("any block", covered_L),
        panel(often, f"by how many of the {counted(blocks, 'block')}"),
    ]
    rest = [masked(f"block {i + 1}", kept_L) for i, kept_L in enumerate(choices.kept_DL)]
    note = f"{_scale(choices)}. Faded tokens were skipped."
    return figure(title, note, [beside(first, 24), in_rows(rest, _COLUMNS if blocks > 4 else 4)])


def block_panels(picture_HW3: np.ndarray, choices: Choices) -> list[tuple[Image.Image, str]]:
    """The picture once for each block, faded where the block skipped a token; and in words what the block did."""
    tokens, experts = choices.kept_DL.shape[1], choices.used_DLN.shape[2]
    cell = max(1, _WIDE // choices.side)
    shown = Image.fromarray(picture_HW3).resize((cell * choices.side,) * 2, Image.Resampling.BICUBIC)
    panels = []
    for i, (kept_L, used_LN) in enumerate(zip(choices.kept_DL, choices.used_DLN, strict=True)):
        each = used_LN[kept_L].sum(1)
        by = f"{each.min()}" if each.min() == each.max() else f"{each.min()} to {each.max()}"
        did = (
            f"block {i + 1}: {kept_L.sum()} of {counted(tokens, 'token')}, each by {by} of {counted(experts, 'expert')}"
        )
        panels.append((_faded(shown, kept_L, choices.side), did))
    return panels


def experts_figure(picture_HW3: np.ndarray, choices: Choices, title: str) -> Image.Image:
    """Each block's token map in the colours of the tokens' best experts, of their second best, and so on (Figure 5)."""
    experts, ranks = choices.used_DLN.shape[2], choices.best_DLT.shape[2]
    cell = max(1, _RANKED // choices.side)
    size = cell * choices.side
    names = [box("", LABEL * 4), *(box(name, LABEL * 4, size) for name in _RANKS[:ranks])]
    columns = [
        below([words(f"block {i + 1}"), *(_coloured(best_L, experts, choices.side, cell) for best_L in best_LT.T)])
        for i, best_LT in enumerate(choices.best_DLT)
    ]
    shown = Image.fromarray(picture_HW3).resize((size, size), Image.Resampling.BICUBIC)
    columns.insert(0, below([words("the picture"), shown]))
    rows = [beside([below(names), *columns[i : i + _COLUMNS]]) for i in range(0, len(columns), _COLUMNS)]
    legend = in_rows([_swatch(expert_colour(n, experts), str(n + 1)) for n in range(experts)], 16, 10)
    note = f"{_scale(choices)}, by the router's scores. Pale: skipped by the block."
    return figure(title, note, [*rows, beside([box("expert", LABEL * 4), legend])])


def chosen_figure(choices: Choices, title: str) -> Image.Image:
    """A small token map for each block and expert: which tokens it was given."""
    blocks, _, experts = choices.used_DLN.shape
    cell = max(1, _TINY // choices.side)
    size = cell * choices.side
    heads = beside([box("", size), *(box(f"{n + 1}", size) for n in range(experts))], 6)
    rows = []
    for i in range(blocks):
        maps = [_given(choices, i, n, cell) for n in range(experts)]
        rows.append(beside([box(f"block {i + 1}", size), *maps], 6, centred=True))
    note = f"{_scale(choices)}. Coloured: given to the expert. Grey: not given. Pale: skipped by the block."
    return figure(title, note, [below([heads, *rows], 6)])


def expert_colour(n: int, experts: int) -> tuple[int, int, int]:
    """Of expert n from 0: neighbours differ in brightness as well as in hue."""
    bright, strong = ((0.90, 0.52), (0.55, 0.72), (0.78, 0.78))[n % 3]
    red, green, blue = colorsys.hsv_to_rgb(n / experts, strong, bright)
    return round(red * 255), round(green * 255), round(blue * 255)


def sequence_colour(share: float) -> tuple[int, int, int]:
    """White to dark blue for 0 to 1."""
    place = min(max(share, 0), 1) * (len(_SEQUENCE) - 1)
    i = min(int(place), len(_SEQUENCE) - 2)
    low, high = np.array(_SEQUENCE[i]), np.array(_SEQUENCE[i + 1])
    red, green, blue = np.rint(low + (high - low) * (place - i)).astype(int).tolist()
    return red, green, blue


def _scale(choices: Choices) -> str:
    return f"Scale {choices.scale}, {choices.side}x{choices.side} tokens"


def _enlarged(colours_L3: np.ndarray, side: int, cell: int) -> Image.Image:
    """A token map with a colour for each token."""
    small = Image.fromarray(colours_L3.reshape(side, side, 3).astype(np.uint8))
    return small.resize((side * cell,) * 2, Image.Resampling.NEAREST)


def _faded(shown: Image.Image, kept_L: np.ndarray, side: int) -> Image.Image:
    """The picture, without colour and almost white where a token was skipped."""
    grey_HW3 = np.asarray(shown.convert("L").convert("RGB"), dtype=np.float32)
    faded = Image.fromarray((grey_HW3 * (1 - _FADE) + _FADED * _FADE).astype(np.uint8))
    mask = Image.fromarray(kept_L.reshape(side, side).astype(np.uint8) * 255)
    return Image.composite(shown, faded, mask.resize(shown.size, Image.Resampling.NEAREST))


def _often(choices: Choices, cell: int) -> Image.Image:
    blocks = choices.kept_DL.shape[0]
    return _enlarged(np.array([sequence_colour(n / blocks) for n in choices.updates_L]), choices.side, cell)


def _ramp(blocks: int, height: int) -> Image.Image:
    """Which colour is how many blocks."""
    steps = range(blocks, -1, -1)
    numbered = np.linspace(0, blocks, min(blocks + 1, 6)).astype(int)
    edges = [round(i * height / len(steps)) for i in range(len(steps) + 1)]
    labels = Image.new("RGB", (64, height), PAPER)
    draw = ImageDraw.Draw(labels)
    for n, top, bottom in zip(steps, edges, edges[1:], strict=False):
        draw.rectangle((0, top, 24, bottom - 1), fill=sequence_colour(n / blocks))
        if n in numbered:
            labels.paste(words(str(n), SMALL), (32, (top + bottom) // 2 - SMALL // 2 - 2))
    draw.rectangle((0, 0, 24, height - 1), outline=FAINT)
    return labels


def _coloured(best_L: np.ndarray, experts: int, side: int, cell: int) -> Image.Image:
    """Each token in its expert's colour; pale where there is nobody."""
    palette = np.array([*(expert_colour(n, experts) for n in range(experts)), _SKIPPED])
    return _enlarged(palette[np.where(best_L == NOBODY, experts, best_L)], side, cell)


def _swatch(colour: tuple[int, int, int], label: str) -> Image.Image:
    return beside([Image.new("RGB", (26, 26), colour), box(label, 34)], 6)


def _given(choices: Choices, block: int, expert: int, cell: int) -> Image.Image:
    used_L, kept_L = choices.used_DLN[block, :, expert], choices.kept_DL[block]
    colours_L3 = np.where(kept_L[:, None], _RESTING, _SKIPPED)
    colours_L3[used_L] = expert_colour(expert, choices.used_DLN.shape[2])
    return _enlarged(colours_L3, choices.side, cell)
