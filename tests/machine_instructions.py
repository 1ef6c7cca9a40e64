"""What kernels are made of, counted in their machine code: no disassembler, no GPU.

An instruction of Volta and later has 16 bytes, of which the lowest 12 bits say what it does.
`test_machine_instructions.py` compares the counts with NVIDIA's disassembler where there is one.
"""

import struct
from collections import Counter
from collections.abc import Iterator

NAMES = {0x83B: "LDSM", 0x23C: "HMMA", 0x983: "LDL", 0x387: "STL", 0xFAE: "LDGSTS"}
"""Of matrices from shared memory, on tensor cores, from and to local memory, and of asynchronous copies."""

OTHERS = "others"
_BYTES, _MASK = 16, 0xFFF
_SECTION = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, address, offset, size, and more
_SECTIONS_AT, _SHAPE_AT = 40, 58  # in an ELF header: the table's offset; a section's size, their number, that of names


def instructions(cubin: bytes) -> dict[str, Counter[str]]:
    """How many of each there are, by kernel."""
    return {
        name.removeprefix(".text."): Counter(
            NAMES.get(word & _MASK, OTHERS) for (word,) in struct.iter_unpack("<H14x", code)
        )
        for name, code in _sections(cubin)
        if name.startswith(".text.")
    }


def _sections(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """Of an ELF file of 64 bits, by name."""
    (table,) = struct.unpack_from("<Q", cubin, _SECTIONS_AT)
    size, count, of_names = struct.unpack_from("<HHH", cubin, _SHAPE_AT)
    found = [_SECTION.unpack_from(cubin, table + i * size) for i in range(count)]
    names = found[of_names][4]
    for section in found:
        start = names + section[0]
        name = cubin[start : cubin.index(b"\0", start)].decode()
        yield name, cubin[section[4] : section[4] + section[5] // _BYTES * _BYTES]
