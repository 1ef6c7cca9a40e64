"""Where tensors live, as an engine needs it: memory by address, a stream of copies in order, arrays as bytes and back.

Two implementations: the host's memory, here, and an NVIDIA GPU's in `cuda_memory.py`. Nothing here knows graphs. The
host's C library can be told to keep what it is given back (`keep_blocks`; glibc only).
"""

import ctypes
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from actvar.bundle.contract import ITEM_BYTES

_ALIGNMENT = 256
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # M_TRIM_THRESHOLD and its like in glibc's malloc.h
_KEPT = 192 << 20
_GROWTH = 64 << 20
_LARGE = 24 << 20


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


@dataclass(frozen=True)
class Rows:
    """Rows in planes, as they are copied: of every plane of the target the first rows, and all of the source's.

    Attributes:
        copied: rows of a plane of the source.
        of_target: rows of a plane of the target.
        planes: of both.
    """

    copied: int
    of_target: int
    planes: int


class Stream(Protocol):
    """Work in the order in which it was given. On a GPU it goes on while the host does something else."""

    @property
    def handle(self) -> int:
        """What an engine's library knows it by."""

    def write(self, address: int, staged: np.ndarray) -> None:
        """Copy a staged array (see `Memory.stage`) into memory."""

    def read(self, staged: np.ndarray, address: int) -> None:
        """Copy memory into a staged array."""

    def copy_rows(self, target: int, target_pitch: int, source: int, width: int, rows: Rows) -> None:
        """Copy rows of `width` bytes that lie one behind the other to places `target_pitch` bytes apart."""

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

    def copy_rows(self, target: int, target_pitch: int, source: int, width: int, rows: Rows) -> None:
        """See `Stream`."""
        shape = rows.planes, rows.copied, width
        if 0 in shape:
            return
        plane = rows.of_target * target_pitch
        extent = (rows.planes - 1) * plane + (rows.copied - 1) * target_pitch + width
        target_rows = np.lib.stride_tricks.as_strided(_bytes(target, extent), shape, (plane, target_pitch, 1))
        target_rows[:] = _bytes(source, rows.planes * rows.copied * width).reshape(shape)

    def wait(self) -> None:
        """See `Stream`."""

    def record(self, work: Callable[[], object]) -> None:
        """See `Stream`."""


def _bytes(address: int, count: int) -> np.ndarray:
    """A view of the host's memory."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))


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


def keep_blocks() -> None:
    """Keep up to 192 MB that are free, for the whole process; blocks of 24 MB and more that do not fit are given back.

    Memory that the system hands out anew is filled with zeros page by page, on a virtual machine after the host has
    found the page, and a picture asks for the same blocks hundreds of times. Kept, they cost half a second of processor
    time less for a picture of d16, and 7 % more memory at the peak (docs/notebook.md).

    glibc by itself raises the second limit as it meets large blocks, and what lies between them then stays for ever.
    When more than the first is free, all of it would go but for a pad: as large as a small batch needs.
    """
    if _is_glibc():
        heap = ctypes.CDLL(None)
        heap.mallopt(_MMAP_THRESHOLD, _LARGE)
        heap.mallopt(_TRIM_THRESHOLD, _KEPT)
        heap.mallopt(_TOP_PAD, _GROWTH)


def give_back() -> None:
    """Give the system all that is free now, between other blocks, too: for once, when what was large is done with."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
