"""Less resident memory while a model streams through: hints to the C library and to Linux. They never change a value.

Weights of a file are mapped into memory, and their pages stay resident once read; ``set_aside`` lets them go until they are
read again. Packed codes are small and come to lie behind large temporaries, and glibc keeps such holes resident; ``trim``
gives them back. Together they keep the peak of quantizing a DiT-XL far below the size of its float32 weights. Other systems
do without.
"""

import ctypes
import mmap
import platform
import sys

from torch import Tensor

__all__ = ["set_aside", "trim"]

_PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4 and newer, which older ones refuse: reclaims pages, loses none
_GLIBC = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def trim() -> None:
    """Give freed memory back to the system."""
    if _GLIBC:
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def set_aside(tensor: Tensor) -> None:
    """Say that a tensor is not needed for now; where it is mapped from a file, its pages leave memory."""
    if not _GLIBC or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only
    length = (tensor.data_ptr() + tensor.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if length > 0:
        ctypes.CDLL("libc.so.6").madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), _PAGEOUT)
