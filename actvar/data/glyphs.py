"""Glyphs-100: a procedural set of 64x64 pictures, one coloured shape on a dark background each.

Knows how a glyph is drawn and which picture belongs to (seed, index); not who trains on it. Every picture has its own
counter-based generator, so it is the same, bit by bit, alone and in any batch.

Letters in shapes: N pictures, 3 red green blue, H W pixels down and across, P random parameters, K polygon corners.
Lengths are in units in which the picture spans [-1, 1]; y points up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actvar.class_names import CLASS_NAMES, COLOURS, SHAPES
from actvar.data.pictures import PictureBatch

TRAIN_SEED = 0
"""Pictures that the VQVAE and VAR are trained on."""
HELD_OUT_SEED = 1
"""Pictures that nothing is trained on."""
CLASSIFIER_SEED = 2
"""Pictures that the judge of the generators is trained on."""

PICTURE_SIZE = 64

_PIXEL = 2.0 / PICTURE_SIZE
_EDGE_WIDTH = 1.5 * _PIXEL
_PICTURES_AT_ONCE = 16  # 256 KiB for each plane of float32: the intermediate planes stay in the CPU's cache
_PARAMETERS = 14

_RGB = {
    "red": (0.88, 0.10, 0.12),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.98, 0.92, 0.15),
    "green": (0.12, 0.70, 0.20),
    "cyan": (0.15, 0.85, 0.90),
    "blue": (0.12, 0.32, 0.98),
    "purple": (0.55, 0.18, 0.82),
    "pink": (1.00, 0.55, 0.78),
    "brown": (0.52, 0.31, 0.14),
    "white": (0.94, 0.94, 0.94),
}
_BACKGROUND_TINT = np.array([0.90, 1.00, 1.25], np.float32)

Array = np.ndarray


@dataclass(frozen=True)
class GlyphPictures:
    """The first `count` pictures of a seed, as a data set."""

    count: int
    seed: int = TRAIN_SEED

    @property
    def identity(self) -> dict[str, object]:
        """What decides the pixels."""
        return {"name": "Glyphs-100", "pictures": self.count, "seed": self.seed}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Colour and shape."""
        return CLASS_NAMES

    def __len__(self) -> int:
        """N."""
        return self.count

    def load(self, numbers: range) -> PictureBatch:
        """The pictures of these numbers."""
        return PictureBatch(*glyph_batch(np.asarray(numbers), self.seed))


def balanced_classes(indices_N: Array) -> Array:
    """The class of every picture number: all hundred in turn."""
    return np.asarray(indices_N, np.int64) % len(CLASS_NAMES)


def glyph_batch(indices_N: Array, seed: int) -> tuple[Tensor, Tensor]:
    """The pictures of `seed` at `indices_N` and their classes, which are balanced.

    Returns:
        pictures_N3HW float32 in [-1, 1] and class_ids_N int64.
    """
    class_ids_N = balanced_classes(indices_N)
    return render_glyphs(class_ids_N, indices_N, seed), torch.from_numpy(class_ids_N)


def render_glyphs(class_ids_N: Array, indices_N: Array, seed: int) -> Tensor:
    """Draws one picture for each class and index.

    Place, size, turn, brightness, texture and background of a picture follow from (seed, index) alone.

    Args:
        class_ids_N: 10 * shape + colour, 0 to 99.
        indices_N: the picture's number within the seed's stream, 0 or more.
        seed: which stream, 0 or more.

    Returns:
        pictures_N3HW float32 in [-1, 1].

    Raises:
        ValueError: lengths differ, a class is outside 0-99, or an index or the seed is negative.
    """
    class_ids_N, indices_N = np.asarray(class_ids_N, np.int64), np.asarray(indices_N, np.int64)
    if class_ids_N.ndim != 1 or class_ids_N.shape != indices_N.shape:
        raise ValueError(f"class_ids and indices must be equally long, got {class_ids_N.shape} and {indices_N.shape}")
    if class_ids_N.size and not 0 <= class_ids_N.min() <= class_ids_N.max() < len(CLASS_NAMES):
        raise ValueError(f"class_ids must lie in 0-99, got {class_ids_N.min()} to {class_ids_N.max()}")
    if seed < 0 or (indices_N.size and indices_N.min() < 0):
        raise ValueError(
            f"seed and indices must be 0 or more, got seed {seed}, indices from {indices_N.min(initial=0)}"
        )

    pictures_N3HW = np.empty((len(indices_N), 3, PICTURE_SIZE, PICTURE_SIZE), np.float32)
    for shape_id, shape in enumerate(SHAPES):
        places = np.flatnonzero(class_ids_N // len(COLOURS) == shape_id)
        for first in range(0, len(places), _PICTURES_AT_ONCE):
            group = places[first : first + _PICTURES_AT_ONCE]
            uniforms_NP = np.stack([_picture_uniforms(seed, int(index)) for index in indices_N[group]])
            pictures_N3HW[group] = _draw(shape, class_ids_N[group] % len(COLOURS), uniforms_NP)
    return torch.from_numpy(pictures_N3HW)


def _picture_uniforms(seed: int, index: int) -> Array:
    """All that is random in one picture, in [0, 1): Philox counts under the key (seed, index)."""
    return np.random.Generator(np.random.Philox(key=[seed, index])).random(_PARAMETERS, np.float32)


def _draw(shape: str, colour_ids_N: Array, uniforms_NP: Array) -> Array:
    """Pictures N3HW in [-1, 1] of one shape."""
    (place_x, place_y, size, turn, brightness, texture, contrast, texture_turn, texture_u, texture_v,
     background_turn, background_from, background_to, period) = uniforms_NP.T[:, :, None, None]  # fmt: skip
    x_HW, y_HW = _pixel_centres()

    size_N11 = 0.60 + 0.25 * size
    u_NHW, v_NHW = _turned(
        (x_HW - 0.12 * (2 * place_x - 1)) / size_N11,
        (y_HW - 0.12 * (2 * place_y - 1)) / size_N11,
        math.radians(12) * (2 * turn - 1),
    )
    distance_NHW = _DISTANCES[shape](u_NHW, v_NHW) * size_N11
    coverage_NHW = _smooth_step(0.5 - distance_NHW / _EDGE_WIDTH)

    across_NHW, up_NHW = _turned(x_HW, y_HW, math.pi * texture_turn)
    period_N11 = 0.50 + 0.20 * period
    pattern_NHW = _texture(texture, across_NHW / period_N11 + texture_u, up_NHW / period_N11 + texture_v)
    shade_NHW = (0.96 + 0.08 * brightness) * (1 + (0.08 + 0.02 * contrast) * pattern_NHW)
    colours_N3 = np.array([_RGB[COLOURS[colour]] for colour in colour_ids_N], np.float32)
    glyph_N3HW = np.minimum(colours_N3[:, :, None, None] * shade_NHW[:, None], 1.0)

    along_NHW, _ = _turned(x_HW, y_HW, 2 * math.pi * background_turn)
    mix_NHW = np.clip(0.5 + along_NHW / (2 * math.sqrt(2)), 0, 1)
    grey_NHW = 0.09 + 0.15 * (background_from + (background_to - background_from) * mix_NHW)
    background_N3HW = grey_NHW[:, None] * _BACKGROUND_TINT[:, None, None]

    return (background_N3HW + coverage_NHW[:, None] * (glyph_N3HW - background_N3HW)) * 2 - 1


def _pixel_centres() -> tuple[Array, Array]:
    centres = (np.arange(PICTURE_SIZE, dtype=np.float32) + 0.5) * np.float32(_PIXEL) - 1
    return np.broadcast_to(centres, (PICTURE_SIZE,) * 2), np.broadcast_to(-centres[:, None], (PICTURE_SIZE,) * 2)


def _turned(x_NHW: Array, y_NHW: Array, angle_N11: Array) -> tuple[Array, Array]:
    """Coordinates in axes that are turned by angle_N11 (radians, anticlockwise)."""
    # math's cosine for each picture, since numpy's vector and tail loops need not round alike
    cos_N11 = np.array([math.cos(angle) for angle in angle_N11.flat], np.float32)[:, None, None]
    sin_N11 = np.array([math.sin(angle) for angle in angle_N11.flat], np.float32)[:, None, None]
    return cos_N11 * x_NHW + sin_N11 * y_NHW, cos_N11 * y_NHW - sin_N11 * x_NHW


def _smooth_step(t: Array) -> Array:
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _wave(t: Array) -> Array:
    """A soft wave of period 1 between -1 and 1, made of a cubic: exactly the same on every machine."""
    return 2 * _smooth_step(np.abs(2 * (t - np.floor(t)) - 1)) - 1


def _texture(kind_N11: Array, u_NHW: Array, v_NHW: Array) -> Array:
    """Pattern in [-1, 1] of period 1: a third of the pictures plain, a third in wide stripes, a third in large dots."""
    stripes_NHW = _wave(u_NHW)
    dots_NHW = stripes_NHW * _wave(v_NHW)
    return np.where(kind_N11 < 1 / 3, np.float32(0), np.where(kind_N11 < 2 / 3, stripes_NHW, dots_NHW))


# Signed distances, negative inside, in the glyph's own axes: every shape fills about the disc of radius 1.


def _disc(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v) - np.float32(0.86)


def _ring(u: Array, v: Array) -> Array:
    return np.abs(np.sqrt(u * u + v * v) - np.float32(0.70)) - np.float32(0.20)


def _crescent(u: Array, v: Array) -> Array:
    """A disc with a disc taken out of its right side."""
    bite = np.sqrt((u - 0.50) ** 2 + v * v) - np.float32(0.72)
    return np.maximum(np.sqrt((u - 0.08) ** 2 + v * v) - np.float32(0.92), -bite)


def _heart(u: Array, v: Array) -> Array:
    """A square on its corner and two discs whose diameters are its upper sides."""
    half = 0.55  # half a side of the square
    shift = half / math.sqrt(2)
    across, up = np.abs(u), v + np.float32(0.12)
    along_a, along_b = (across + up) / math.sqrt(2), (across - up) / math.sqrt(2)
    square = np.maximum(np.abs(along_a), np.abs(along_b)) - np.float32(half)
    lobe = np.sqrt((across - shift) ** 2 + (up - shift) ** 2) - np.float32(half)
    return np.minimum(square, lobe)


def _polygon(corners_K2: list[tuple[float, float]]) -> Callable[[Array, Array], Array]:
    """Signed distance to a closed polygon: the nearest edge, and inside by counting edges crossed (even-odd rule)."""

    def distance(u: Array, v: Array) -> Array:
        nearest_squared = np.full(u.shape, np.inf, np.float32)
        inside = np.zeros(u.shape, bool)
        for (from_u, from_v), (to_u, to_v) in zip(corners_K2, corners_K2[1:] + corners_K2[:1], strict=True):
            edge_u, edge_v = to_u - from_u, to_v - from_v
            off_u, off_v = u - np.float32(from_u), v - np.float32(from_v)
            share = np.clip((off_u * edge_u + off_v * edge_v) / (edge_u**2 + edge_v**2), 0, 1)
            gap_u, gap_v = off_u - share * edge_u, off_v - share * edge_v
            nearest_squared = np.minimum(nearest_squared, gap_u * gap_u + gap_v * gap_v)
            if edge_v != 0:
                inside ^= ((v >= from_v) != (v >= to_v)) & (off_u < off_v * (edge_u / edge_v))
        return np.where(inside, -1, np.float32(1)) * np.sqrt(nearest_squared)

    return distance


def _star_corners() -> list[tuple[float, float]]:
    radii_and_angles = [(1.0 if k % 2 == 0 else 0.42, math.pi / 2 + k * math.pi / 5) for k in range(10)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in radii_and_angles]


def _cross_corners() -> list[tuple[float, float]]:
    corners = [(0.27, 0.27), (0.27, 0.92), (-0.27, 0.92)]
    while len(corners) < 12:
        corners += [(-v, u) for u, v in corners[-3:]]  # the next arm, a quarter turn on
    return corners


_DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": _disc,
    "square": _polygon([(-0.74, -0.74), (0.74, -0.74), (0.74, 0.74), (-0.74, 0.74)]),
    "triangle": _polygon([(-0.95, -0.72), (0.95, -0.72), (0.0, 0.92)]),
    "star": _polygon(_star_corners()),
    "cross": _polygon(_cross_corners()),
    "ring": _ring,
    "heart": _heart,
    "arrow": _polygon(
        [(0.98, 0.0), (0.12, 0.78), (0.12, 0.27), (-0.92, 0.27), (-0.92, -0.27), (0.12, -0.27), (0.12, -0.78)]
    ),
    "crescent": _crescent,
    "hourglass": _polygon([(-0.78, 0.90), (0.78, 0.90), (0.13, 0.0), (0.78, -0.90), (-0.78, -0.90), (-0.13, 0.0)]),
}
