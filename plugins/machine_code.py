"""For which GPUs a compiled library holds machine code, read from its file: no CUDA tool, no GPU.

nvcc puts a fat binary into a library for each source: entries of machine code, each for one architecture, and of PTX,
which a driver must compile before the first launch. Little-endian Linux libraries.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actvar.errors import ActVARError

_BINARY, _MAGIC, _VERSION = (
    struct.Struct("<IHHQ"),
    0xBA55ED50,
    1,
)  # magic, version, bytes of this header, of the entries
_ENTRY, _ARCHITECTURE = struct.Struct("<HHIQ"), 28  # kind, version, bytes of this header, of the content; offset
_MACHINE_CODE = 2  # a kind; 1 is PTX
_ELF = b"\x7fELF"


@dataclass(frozen=True)
class MachineCode:
    """The code of one source for one architecture, such as 89 for 8.9: an ELF file, or packed."""

    architecture: int
    content: bytes

    @property
    def packed(self) -> bool:
        """Whether nvcc has compressed it."""
        return not self.content.startswith(_ELF)


def machine_code(library: Path) -> tuple[MachineCode, ...]:
    """All machine code in a library, in its order."""
    content = library.read_bytes()
    return tuple(code for start in _binaries(content) for code in _codes(content, start))


def runs_on(library: Path, capability: str) -> bool:
    """Whether a GPU of this compute capability runs a library as it is.

    Machine code for 8.6 runs on 8.9 as well: the same major number, and a minor one that is not above the GPU's.
    """
    major, minor = (int(part) for part in capability.split("."))
    there = {code.architecture for code in machine_code(library)}
    return any(each // 10 == major and each % 10 <= minor for each in there)


def require_machine_code(library: Path, capability: str) -> None:
    """Go on only with a library that a GPU of this compute capability runs as it is.

    Raises:
        ActVARError: its driver would have to compile it first, or can run none of it.
    """
    if runs_on(library, capability):
        return
    there = sorted({code.architecture for code in machine_code(library)})
    held = ", ".join(f"{each // 10}.{each % 10}" for each in there) or "no GPU"
    raise ActVARError(
        f"{library} holds machine code for {held}, and this GPU has compute capability {capability}. "
        f"Build it with -DCMAKE_CUDA_ARCHITECTURES={capability.replace('.', '')}."
    )


def _binaries(content: bytes) -> Iterator[int]:
    """Where fat binaries start."""
    at, magic = 0, struct.pack("<IH", _MAGIC, _VERSION)
    while (at := content.find(magic, at)) >= 0:
        yield at
        at += _BINARY.size


def _codes(content: bytes, start: int) -> Iterator[MachineCode]:
    if start + _BINARY.size > len(content):
        return
    _, _, header, entries = _BINARY.unpack_from(content, start)
    at, end = start + header, start + header + entries
    if end > len(content):
        return
    while at + _ARCHITECTURE + 4 <= end:
        kind, _, header, size = _ENTRY.unpack_from(content, at)
        if header < _ENTRY.size or at + header + size > end:
            return
        if kind == _MACHINE_CODE:
            (architecture,) = struct.unpack_from("<I", content, at + _ARCHITECTURE)
            yield MachineCode(architecture, content[at + header : at + header + size])
        at += header + size
