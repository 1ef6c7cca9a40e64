"""Arrays as the bytes of a bundle's types and back; numpy has no bfloat16, so that type is here.

Plain numpy, no engine.
"""

import numpy as np


def encode(array: np.ndarray, dtype: str) -> np.ndarray:
    """The bytes of an array's values in a type of a bundle: [count] uint8.

    bfloat16 takes the upper half of float32, rounded to nearest, ties to even.
    """
    if dtype != "bfloat16":
        return np.ascontiguousarray(array, np.dtype(dtype)).reshape(-1).view(np.uint8)
    bits = np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, (bits >> 16) | 0x40, rounded).astype(np.uint16).view(np.uint8)


def decode(raw: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of its own from such bytes; bfloat16 becomes float32, which holds all its values."""
    if dtype != "bfloat16":
        return raw.view(np.dtype(dtype)).reshape(shape).copy()
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
