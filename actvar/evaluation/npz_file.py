"""An .npz from anywhere: the arrays that it says it holds, and their values. Nothing in it is run.

A header is compared with what numpy writes, not evaluated; what it claims is held against the sizes in the zip, and
those against the file, before anything is read. Plain numpy: no PyTorch.
"""

import math
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from actvar.errors import ActVARError, counted, shown

MAX_ARRAYS = 256
_MAX_HEADER = 10_000
_MAX_RATIO = 1100  # what deflate packs to one byte, and some more
_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4}  # by version; the third is for names that are no Latin-1
_HEADER = re.compile(
    rb"\{'descr': '([<>|=][a-zA-Z][0-9]{0,5})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,13}L?,? ?){0,32})\),? *\} *\n?"
)


@dataclass(frozen=True)
class ArrayHeader:
    """What stands before an array's values."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool

    @property
    def bytes(self) -> int:
        """Of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}{', columns first' if self.fortran_order else ''}"


class NpzFile:
    """An .npz that is open; see `opened_npz`."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int):
        self._path, self._archive, self._size = path, archive, size
        if len(archive.namelist()) > MAX_ARRAYS:
            raise ValueError(f"it holds {counted(len(archive.namelist()), 'array')}, more than {MAX_ARRAYS}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arrays, as they can be printed."""
        return tuple(shown(name.removesuffix(".npy"), 80) for name in self._archive.namelist())

    def header(self, name: str) -> ArrayHeader:
        """What an array is; none of its values is read."""
        with self.values_of(name) as (header, _):
            return header

    @contextmanager
    def values_of(self, name: str) -> Iterator[tuple[ArrayHeader, IO[bytes]]]:
        """What an array is, and its values to be read: as many bytes as it says, or an error.

        Raises:
            ValueError: there is no such array, or its size is not what its header claims.
        """
        with self._archive.open(self._info(name)) as member:
            header, length = _read_header(member)
            claimed, there = length + header.bytes, self._info(name).file_size
            if header.dtype.hasobject:
                raise ValueError(f"{name} holds objects of Python")
            if claimed != there:
                raise ValueError(f"{name} claims to be {header}, {claimed} bytes, and has {there}")
            yield header, member

    def read(self, name: str) -> np.ndarray:
        """An array; look at its header first."""
        with self.values_of(name) as (header, member):
            values = np.frombuffer(_all(member, header.bytes), header.dtype)
            return values.reshape(header.shape, order="F" if header.fortran_order else "C")

    def _info(self, name: str) -> zipfile.ZipInfo:
        if f"{name}.npy" not in self._archive.namelist():
            raise ValueError(f"it holds no {name}")
        info = self._archive.getinfo(f"{name}.npy")
        packed = {zipfile.ZIP_STORED: info.compress_size, zipfile.ZIP_DEFLATED: info.compress_size * _MAX_RATIO}
        if info.compress_type not in packed or info.flag_bits & 1:
            raise ValueError(f"{name} is packed as numpy packs nothing")
        if info.compress_size > self._size or info.file_size > packed[info.compress_type]:
            raise ValueError(f"{name} claims {info.file_size} bytes, and the file has {self._size}")
        return info


@contextmanager
def opened_npz(path: Path, what: str = "an .npz", advice: str = "Fetch or write it again.") -> Iterator[NpzFile]:
    """An .npz to read; a link to it is followed. Whatever the block finds wrong in it becomes an error that names it.

    Raises:
        ActVARError: it cannot be read as what it should be.
    """
    try:
        with _opened(path) as file, zipfile.ZipFile(file) as archive:
            yield NpzFile(path, archive, os.fstat(file.fileno()).st_size)
    except (ActVARError, MemoryError):
        raise
    except Exception as error:  # of a broken file, zipfile, zlib and numpy may raise anything
        reason = (isinstance(error, OSError) and error.strerror) or shown(str(error)) or type(error).__name__
        raise ActVARError(f"{path} cannot be read as {what} ({reason}). {advice}") from None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no plain file")
        yield file


def _read_header(member: IO[bytes]) -> tuple[ArrayHeader, int]:
    """The header, and its length in bytes."""
    start = member.read(8)
    if start[:6] != _MAGIC or start[6:] not in _LENGTH_BYTES:
        raise ValueError("an array is in no form that is known here")
    size = member.read(_LENGTH_BYTES[start[6:]])
    length = int.from_bytes(size, "little")
    if length > _MAX_HEADER:
        raise ValueError(f"an array's header is {length} bytes long")
    text = _all(member, length)
    match = _HEADER.fullmatch(text)
    if not match:
        raise ValueError(f"an array's header is {shown(repr(text.strip()), 80)}")
    descr, order, sizes = match.groups()
    shape = tuple(int(size.rstrip(b"L")) for size in re.findall(rb"[0-9]+L?", sizes))
    header = ArrayHeader(shape, np.dtype(descr.decode()), order == b"True")
    return header, len(start) + len(size) + length


def _all(member: IO[bytes], count: int) -> bytes:
    data = member.read(count)
    if len(data) != count:
        raise ValueError("it ends too early")
    return data
