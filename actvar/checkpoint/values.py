"""The values of one tensor as they lie in a file, whatever wrote it; numpy's arithmetic alone.

Knows the types that numpy lacks; not the formats.
"""

import math
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool")
"""Types of weights and of the buffers beside them. Complex numbers, packed halves of bytes and the like are neither."""


def numpy_type(dtype: str) -> np.dtype:
    """Numpy's type of this name, little-endian; of `FLOATS` and `INTEGERS`."""
    return np.dtype(getattr(ml_dtypes, dtype, None) or dtype).newbyteorder("<")


@dataclass(frozen=True)
class Values:
    """A plain tensor of a file, not read yet.

    Attributes:
        dtype: its type by numpy's name, or that of `ml_dtypes`.
        shape: its dimensions.
        memory: what it is a view of, and the bytes of that. Tensors that are views of the same share their values.
        read: gives its values, which may be mapped from the file.
    """

    dtype: str
    shape: tuple[int, ...]
    memory: tuple[Hashable, int]
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """How many values there are."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """What they take as they are, where their type is one that weights have."""
        return self.size * numpy_type(self.dtype).itemsize

    def describe(self) -> str:
        """Type and shape, for messages."""
        return f"{self.dtype} of the shape {list(self.shape)}"


class ChangedFileError(OSError):
    """A file is not the one any more that it was when it was opened."""


@dataclass(frozen=True)
class OpenedFile:
    """A file as it was when it was opened: it is opened again for each read, and must still be the same."""

    path: Path
    _stamp: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> "OpenedFile":
        """The file as it is now.

        Raises:
            OSError: it cannot be looked at.
        """
        return cls(path, _stamp(path.stat()))

    def values(self, dtype: str, shape: tuple[int, ...], place: int, length: int) -> Values:
        """A tensor of so many bytes that lies in it from a place on."""
        return Values(dtype, shape, ((self.path, place), length), partial(self._tensor, dtype, shape, place))

    def _tensor(self, dtype: str, shape: tuple[int, ...], place: int) -> np.ndarray:
        """In memory of its own: what becomes of the file afterwards does not matter."""
        values = np.empty(shape, numpy_type(dtype))
        self.read(place, values.reshape(-1).view(np.uint8).data)
        return values

    def read(self, place: int, target: memoryview) -> None:
        """Fill a buffer with the bytes from a place on.

        Raises:
            OSError: it cannot be read, or is not the same any more.
        """
        rest = target
        with self.path.open("rb", buffering=0) as file:
            if _stamp(os.fstat(file.fileno())) != self._stamp:
                raise ChangedFileError("it was changed while it was read")
            file.seek(place)
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise ChangedFileError("it was cut short while it was read")
                rest = rest[count:]


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
