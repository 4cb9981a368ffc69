"""Whether bytes of a file are in the system's page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

import numpy as np
from numpy.typing import NDArray

__all__ = ["is_resident", "is_told", "resident_share"]

_mincore = getattr(ctypes.CDLL(None), "mincore", None) if sys.platform == "linux" else None


def resident_share(fd: int, start: int, stop: int) -> float:
    """Return which share of the pages of a file from `start` to before `stop` is in memory.

    The system tells only who may write the file, or owns it; of others it says 1. Where it tells
    nobody, or the file ends before `start`, it is 0.
    """
    first = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    if _mincore is None or stop <= start:
        return 0.0
    try:
        # Shared, for reading: nothing is loaded through it.
        mapped = mmap.mmap(fd, stop - first, mmap.MAP_SHARED, mmap.PROT_READ, offset=first)
    except (OSError, ValueError):  # it is shorter, or cannot be mapped
        return 0.0
    memory = np.frombuffer(mapped, np.uint8)
    return _share(memory.ctypes.data, memory.nbytes)


def is_told(fd: int) -> bool:
    """Whether the system tells this process which pages of a file are in memory."""
    if _mincore is None:
        return False
    owners = (0, os.fstat(fd).st_uid)
    return os.geteuid() in owners or os.access(f"/proc/self/fd/{fd}", os.W_OK)


def is_resident(memory: NDArray[np.uint8]) -> bool:
    """Whether all pages of memory that begins on one are there; the same of mapped files."""
    return _share(memory.ctypes.data, memory.nbytes) == 1


def _share(address: int, nbytes: int) -> float:
    if _mincore is None:
        return 0.0
    pages = np.zeros(-(-nbytes // mmap.PAGESIZE), np.uint8)
    found = _mincore(
        ctypes.c_void_p(address), ctypes.c_size_t(nbytes), ctypes.c_void_p(pages.ctypes.data)
    )
    return float((pages & 1).mean()) if found == 0 else 0.0
