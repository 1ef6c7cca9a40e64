"""The header of an .npy file, for those that we write: their readers compare it, and parse nothing."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike


def npy_header(shape: Sequence[int], dtype: DTypeLike) -> bytes:
    """The header that `numpy.save` writes for an array in C order; the values follow."""
    header = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()
