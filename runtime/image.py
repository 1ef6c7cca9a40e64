"""Pictures as bytes: the last step from the decoder's numbers to a PNG file, and sheets of several pictures.

Knows nothing of models and classes.

Letters in shapes: B pictures, H height, W width.
"""

import math
from collections.abc import Iterable
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from actvar.errors import ActVARError
from actvar.files import written_whole

SHEET_GAP = 2
"""Pixels of white between the pictures of a sheet."""


def to_bytes(pictures_B3HW: np.ndarray) -> np.ndarray:
    """[B, 3, H, W] in [0, 1] to [B, H, W, 3] uint8: times 255, and truncated as VAR's own demonstration does it.

    Raises:
        ActVARError: a value is not a number.
    """
    if not np.isfinite(pictures_B3HW).all():
        raise ActVARError(
            "The model drew values that are not numbers, so its weights are damaged or too large for this precision. "
            "Use another checkpoint, or export it in fp32."
        )
    scaled_B3HW = pictures_B3HW.astype(np.float32).clip(0, 1) * 255
    return np.ascontiguousarray(scaled_B3HW.astype(np.uint8).transpose(0, 2, 3, 1))


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


def png_bytes(picture_HW3: np.ndarray) -> bytes:
    """A PNG file: the bytes that `write_png` writes."""
    file = BytesIO()
    Image.fromarray(picture_HW3).save(file, format="PNG")
    return file.getvalue()


def write_png(picture_HW3: np.ndarray, path: Path) -> None:
    """Write a PNG under a temporary name and rename it: a file of this name is always whole.

    Raises:
        ActVARError: it cannot be written.
    """
    try:
        with written_whole(path) as file:
            Image.fromarray(picture_HW3).save(file, format="PNG")
    except OSError as error:
        raise ActVARError(f"{path} cannot be written: {error.strerror or error}. Name another with --out.") from None
