"""The C library's heap, told to keep what it is given back; glibc only.

Memory that the system hands out anew is filled with zeros page by page, on a virtual machine after the host has found
the page, and a picture asks for the same blocks hundreds of times. Kept, they cost half a second of processor time less
for a picture of d16, and 7 % more memory at the peak (docs/cpu.md).
"""

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # M_TRIM_THRESHOLD and its like in glibc's malloc.h
_KEPT = 192 << 20
_GROWTH = 64 << 20
_LARGE = 24 << 20


def keep_blocks() -> None:
    """Keep up to 192 MB that are free, for the whole process; blocks of 24 MB and more that do not fit are given back.

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
