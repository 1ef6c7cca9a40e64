"""Where tensors live, as an engine needs it: memory by address, and a stream of copies in order.

Two implementations: the host's memory, here, and an NVIDIA GPU's in `cuda_memory.py`. Nothing here knows graphs.
"""

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from actvar.bundle import ITEM_BYTES


@dataclass(frozen=True)
class Block:
    """Memory that is there as long as `owner` is."""

    address: int
    bytes: int
    owner: object


@dataclass(frozen=True)
class Buffer:
    """A tensor by its address: contiguous, row by row, in a block that somebody holds. `dtype` as in a bundle."""

    address: int
    dtype: str
    shape: tuple[int, ...]
    owner: object

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Stream(Protocol):
    """Work in the order in which it was given. On a GPU it goes on while the host does something else."""

    @property
    def handle(self) -> int:
        """What an engine's library knows it by."""

    def write(self, address: int, staged: np.ndarray) -> None:
        """Copy a staged array (see `Memory.stage`) into memory."""

    def read(self, staged: np.ndarray, address: int) -> None:
        """Copy memory into a staged array."""

    def copy_rows(self, target: int, target_pitch: int, source: int, width: int, rows: int) -> None:
        """Copy `rows` rows of `width` bytes that lie one behind the other to places `target_pitch` bytes apart."""

    def wait(self) -> None:
        """Until all work is done.

        Raises:
            EngineError: some of it failed.
        """

    def record(self, work: Callable[[], object]) -> Callable[[], None] | None:
        """Do not do what `work` puts on this stream, but remember it; returns what does it all.

        None: nothing is won by it, as this stream does its work at once, or it cannot be done: the work is still to be
        run every time.
        """


class Memory(Protocol):
    """The memory of one device."""

    def allocate(self, count: int) -> Block:
        """New memory of so many bytes, of any content, aligned to 256 bytes.

        Raises:
            MemoryError: there is not so much.
        """

    def stage(self, count: int) -> np.ndarray:
        """Bytes of the host's memory that copies read and write without a detour: [count] uint8."""

    def stream(self) -> Stream:
        """A new stream."""


class HostMemory:
    """The host's own memory. Copies are done when the call returns."""

    def allocate(self, count: int) -> Block:
        """See `Memory`."""
        owner = np.empty(count + _ALIGNMENT, np.uint8)
        address = -(-owner.ctypes.data // _ALIGNMENT) * _ALIGNMENT
        return Block(address, count, owner)

    def stage(self, count: int) -> np.ndarray:
        """See `Memory`."""
        return np.empty(count, np.uint8)

    def stream(self) -> "HostStream":
        """See `Memory`."""
        return HostStream()


class HostStream:
    """See `Stream`. No library knows of it."""

    handle = 0

    def write(self, address: int, staged: np.ndarray) -> None:
        """See `Stream`."""
        ctypes.memmove(address, staged.ctypes.data, staged.nbytes)

    def read(self, staged: np.ndarray, address: int) -> None:
        """See `Stream`."""
        ctypes.memmove(staged.ctypes.data, address, staged.nbytes)

    def copy_rows(self, target: int, target_pitch: int, source: int, width: int, rows: int) -> None:
        """See `Stream`."""
        if rows == 0 or width == 0:
            return
        extent = (rows - 1) * target_pitch + width
        target_rows = np.lib.stride_tricks.as_strided(_bytes(target, extent), (rows, width), (target_pitch, 1))
        target_rows[:] = _bytes(source, rows * width).reshape(rows, width)

    def wait(self) -> None:
        """See `Stream`."""

    def record(self, work: Callable[[], object]) -> None:
        """See `Stream`."""


def _bytes(address: int, count: int) -> np.ndarray:
    """A view of the host's memory."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))


_ALIGNMENT = 256
