"""Sheets of several pictures.

Letters in shapes: H height, W width.
"""

import math
from collections.abc import Iterable
from itertools import chain

import numpy as np

SHEET_GAP = 2
"""Pixels of white between the pictures of a sheet."""


def sheet(pictures_HW3: Iterable[np.ndarray], count: int, columns: int | None = None) -> np.ndarray:
    """Pictures of one size in rows, left to right and top to bottom: uint8 [H', W', 3].

    Args:
        pictures_HW3: each is put in its place as it comes, and not kept beside the sheet.
        count: how many there are, one or more.
        columns: in a row; as many as make the sheet about square if left out.
    """
    columns = columns or math.ceil(math.sqrt(count))
    waiting = iter(pictures_HW3)
    first_HW3 = next(waiting)
    height, width, _ = first_HW3.shape
    down, right = height + SHEET_GAP, width + SHEET_GAP
    rows = math.ceil(count / columns)
    result = np.full((rows * down - SHEET_GAP, columns * right - SHEET_GAP, 3), 255, np.uint8)
    for i, picture in enumerate(chain([first_HW3], waiting)):
        top, left = i // columns * down, i % columns * right
        result[top : top + height, left : left + width] = picture
    return result
