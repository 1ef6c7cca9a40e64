"""Pictures as bytes: the last step from the decoder's numbers to a PNG file.

Knows nothing of models and classes.

Letters in shapes: B pictures, H height, W width.
"""

import io

import numpy as np
from PIL import Image

from actvar.errors import ActVARError


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


def to_numbers(pictures_BHW3: np.ndarray) -> np.ndarray:
    """[B, H, W, 3] uint8 to [B, 3, H, W] fp32 in [0, 1]."""
    return np.ascontiguousarray(pictures_BHW3.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def png(picture_HW3: np.ndarray) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(picture_HW3).save(file, format="PNG")
    return file.getvalue()
