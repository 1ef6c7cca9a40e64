"""Glyphs-100: every picture is decided by (seed, index, class), and shows the shape and colour that its name says.

Letters in shapes: N pictures, 3 H W their pixels.
"""

import colorsys
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from actvar.class_names import CLASS_NAMES, COLOURS, SHAPES
from actvar.data.glyphs import CLASSIFIER_SEED, HELD_OUT_SEED, TRAIN_SEED, balanced_classes, glyph_batch, render_glyphs

# Hues in degrees as a colour chart gives them; brown is a dark orange, white has none.
HUES = {
    "red": 0,
    "orange": 33,
    "yellow": 55,
    "green": 125,
    "cyan": 183,
    "blue": 226,
    "purple": 275,
    "pink": 330,
    "brown": 27,
}

# Areas by school geometry, in units of the glyph's own size.
AREAS = {
    "disc": math.pi * 0.86**2,
    "square": 1.48**2,
    "triangle": 1.90 * 1.64 / 2,
    "star": 10 * 0.42 * math.sin(math.pi / 5) / 2,
    "cross": 2 * 1.84 * 0.54 - 0.54**2,
    "ring": math.pi * (0.90**2 - 0.50**2),
    "heart": 1.10**2 + math.pi * 0.55**2,
    "arrow": 1.04 * 0.54 + 1.56 * 0.86 / 2,
    "hourglass": (1.56 + 0.26) * 0.90,
}


def white_masks(shape: str, count: int = 64) -> np.ndarray:
    """Where the white glyphs of a shape are, [count, 64, 64] bool; the same places, sizes and turns for every shape."""
    class_id = CLASS_NAMES.index(f"white-{shape}")
    pictures_N3HW = render_glyphs(np.full(count, class_id), np.arange(count), seed=5)
    return (pictures_N3HW.mean(1) > 0.10).numpy()


def main_colour(picture_3HW: Tensor) -> tuple[float, float, float]:
    """Hue in degrees, saturation and value of the pixels that stand out from all four corners."""
    pixels_P3 = (picture_3HW.flatten(1).T + 1) / 2
    corners_43 = (picture_3HW[:, [0, 0, -1, -1], [0, -1, 0, -1]].T + 1) / 2
    distance_P = torch.cdist(pixels_P3, corners_43).min(1).values
    red, green, blue = pixels_P3[distance_P > 0.8 * distance_P.max()].mean(0).tolist()
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    return 360 * hue, saturation, value


def test_a_picture_is_the_same_alone_and_in_any_batch():
    """Training resumes, and evaluation splits its batches, without changing the data: bit by bit."""
    indices_N = np.random.default_rng(0).permutation(1000)[:70]
    together_N3HW, _ = glyph_batch(indices_N, seed=3)
    for picture_3HW, index in zip(together_N3HW, indices_N, strict=True):
        assert torch.equal(glyph_batch(np.array([index]), seed=3)[0][0], picture_3HW)


def test_seeds_and_indices_give_different_pictures():
    """The held-out stream and the judge's stream share no picture with the training stream."""
    streams = [glyph_batch(np.arange(200), seed)[0] for seed in (TRAIN_SEED, HELD_OUT_SEED, CLASSIFIER_SEED)]
    pictures_NP = torch.cat(streams).flatten(1)
    distances_NN = torch.cdist(pictures_NP, pictures_NP)
    assert distances_NN.fill_diagonal_(torch.inf).min() > 1


def test_class_88_is_the_brown_crescent():
    """class_id = 10 * shape + colour; the command line and the docs speak of class 88 by this name."""
    assert (SHAPES[8], COLOURS[8]) == ("crescent", "brown")
    assert CLASS_NAMES[88] == "brown-crescent"
    assert len(set(CLASS_NAMES)) == 100


def test_a_batch_holds_all_classes_in_turn():
    indices_N = np.array([0, 88, 188, 1099])
    pictures_N3HW, class_ids_N = glyph_batch(indices_N, seed=4)
    assert class_ids_N.tolist() == balanced_classes(indices_N).tolist() == [0, 88, 88, 99]
    assert torch.equal(pictures_N3HW, render_glyphs(np.array([0, 88, 88, 99]), indices_N, seed=4))


def test_pictures_are_within_the_range_that_the_vqvae_expects():
    pictures_N3HW, _ = glyph_batch(np.arange(300), seed=0)
    assert pictures_N3HW.shape == (300, 3, 64, 64)
    assert pictures_N3HW.dtype == torch.float32
    assert -1 <= pictures_N3HW.min() < -0.8
    assert 0.9 < pictures_N3HW.max() <= 1


@pytest.mark.parametrize("colour", COLOURS)
def test_every_shape_is_seen_in_the_colour_of_its_name(colour):
    """By a colour chart's hues rather than by the table that the renderer paints with."""
    class_ids_N = np.repeat([CLASS_NAMES.index(f"{colour}-{shape}") for shape in SHAPES], 4)
    for picture_3HW in render_glyphs(class_ids_N, np.arange(40), seed=6):
        hue, saturation, value = main_colour(picture_3HW)
        if colour == "white":
            assert saturation < 0.05 and value > 0.8
            continue
        assert abs((hue - HUES[colour] + 180) % 360 - 180) < 8
        assert saturation > 0.35
        assert (value < 0.65) == (colour == "brown")


@pytest.mark.parametrize("shape", AREAS)
def test_shapes_have_the_areas_of_school_geometry(shape):
    """A wrong distance (sign, corner, or scale) moves the outline; the disc of the same size is the measure."""
    share = white_masks(shape).sum() / white_masks("disc").sum()
    assert share == pytest.approx(AREAS[shape] / AREAS["disc"], rel=0.03)


def test_a_crescent_is_the_disc_less_its_right_side():
    masks_NHW = white_masks("crescent")
    columns = np.arange(64)
    for mask_HW, disc_HW in zip(masks_NHW, white_masks("disc"), strict=True):
        centre = (disc_HW.sum(0) * columns).sum() / disc_HW.sum()
        assert (mask_HW.sum(0) * columns).sum() / mask_HW.sum() < centre - 3
        assert 0.3 < mask_HW.sum() / disc_HW.sum() < 0.7


def test_no_two_shapes_cover_the_same_pixels():
    """At one place, size and turn any two shapes overlap (intersection over union) by less than nine tenths."""
    masks = {shape: white_masks(shape) for shape in SHAPES}
    for number, one in enumerate(SHAPES):
        for other in SHAPES[number + 1 :]:
            overlap_N = (masks[one] & masks[other]).sum((1, 2)) / (masks[one] | masks[other]).sum((1, 2))
            assert overlap_N.max() < 0.9, (one, other)


@pytest.mark.parametrize(
    ("class_ids", "indices", "seed", "told"),
    [
        ([100], [0], 0, "0-99"),
        ([-1], [0], 0, "0-99"),
        ([1, 2], [0], 0, "equally long"),
        ([1], [-1], 0, "0 or more"),
        ([1], [0], -1, "0 or more"),
    ],
)
def test_what_cannot_be_drawn_is_refused(class_ids, indices, seed, told):
    with pytest.raises(ValueError, match=told):
        render_glyphs(np.array(class_ids), np.array(indices), seed)
