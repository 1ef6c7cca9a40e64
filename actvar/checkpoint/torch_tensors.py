"""PyTorch's tensors as values of a file: what a `.pth` holds, looked at before anything is done with it."""

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from actvar.checkpoint.values import FLOATS, INTEGERS, Values, numpy_type
from actvar.errors import shown

_INTEGERS_OF = {1: torch.uint8, 2: torch.int16}  # what a type that numpy lacks is shown as


def plain_values(value: Any) -> tuple[Values | None, str]:
    """A tensor's values, None if they are not all there as they stand, in a type that weights have; and what it is.

    Gradients are left behind, so that a parameter is as good as its values. Of what is no tensor, nothing is said.
    """
    if not isinstance(value, Tensor):
        return None, ""
    if not _is_plain(value):
        return None, _describe(value)
    dtype, storage = _dtype(value), value.untyped_storage()
    memory = storage.data_ptr(), storage.nbytes()
    values = Values(dtype, tuple(value.shape), memory, partial(_array, value.detach(), dtype))
    return values, values.describe()


def _is_plain(tensor: Tensor) -> bool:
    """A view with stride 0 may claim any size, and be far larger than its file."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        return False
    if tensor.device.type != "cpu" or _dtype(tensor) not in FLOATS + INTEGERS or tensor.is_neg():
        return False
    return 0 < tensor.nbytes <= tensor.untyped_storage().nbytes()


def _describe(tensor: Tensor) -> str:
    """Type, layout and shape; and what else makes a tensor odd."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a tensor of the sub-class {shown(type(tensor).__name__)}"
    layout = "" if tensor.layout == torch.strided else f" {str(tensor.layout).removeprefix('torch.')}"
    sign = ", its values with the other sign," if _dtype(tensor) in FLOATS and tensor.is_neg() else ""
    place = "" if tensor.device.type == "cpu" else f" on the device {tensor.device.type}"
    return f"{_dtype(tensor)}{layout}{place}{sign} of the shape {list(tensor.shape)}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _array(tensor: Tensor, dtype: str) -> np.ndarray:
    """A view of its memory."""
    if hasattr(ml_dtypes, dtype):
        return tensor.view(_INTEGERS_OF[tensor.itemsize]).numpy().view(numpy_type(dtype))
    return tensor.numpy()
