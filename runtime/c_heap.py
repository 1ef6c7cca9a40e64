"""The C library's heap, told what to keep and what to give back to the system; glibc only.

Memory that is given back must be filled with zeros again by the system when it is next asked for, page by page, and a
run of a scale asks for the same blocks hundreds of times: kept, they save a twelfth of its time. What is kept stays
when something else wants memory, so it is given back between the scales and the decoder (docs/cpu.md).
"""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_KEPT = 64 << 20
_LARGE = 24 << 20


def keep_small_blocks() -> None:
    """Let blocks of 24 MB and more have memory of their own, and keep up to 64 MB of the rest, for the whole process.

    glibc by itself raises the first limit as it meets large blocks, and what lies between them then stays for ever.
    """
    if _is_glibc():
        heap = ctypes.CDLL(None)
        heap.mallopt(_MMAP_THRESHOLD, _LARGE)
        heap.mallopt(_TRIM_THRESHOLD, _KEPT)


def give_back() -> None:
    """Let the system have what is free, wherever it lies."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
