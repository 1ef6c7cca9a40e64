"""The C library's heap, told to give large blocks back to the system."""

import ctypes
import platform

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
_LARGE = 1 << 20


def return_large_blocks() -> None:
    """Let blocks of a megabyte and more have memory of their own, for the whole process; glibc only.

    glibc raises that limit to 32 MB as it meets large blocks, and activations then leave holes in the heap that stay.
    Drawing one picture with d16 peaks at 1851 MB with this and at 2060 MB without, for some 5 % of processor time.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)
