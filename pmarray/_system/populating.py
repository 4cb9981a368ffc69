"""Pages of a mapping are made, or looked up, all at once: without a fault for each.

`mmap.madvise` could ask for that, too, but would keep all other threads of Python from running.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache

import numpy as np

__all__ = ["can_populate", "populate_read", "populate_write"]

# From Linux 5.14 on; Python has no names for them.
_POPULATE_READ = 22
_POPULATE_WRITE = 23


@cache
def can_populate() -> bool:
    """Whether this system can: found out by asking, with a page that costs nothing."""
    page = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.uint8)
    return populate_read(page.ctypes.data, mmap.PAGESIZE)


def populate_read(address: int, nbytes: int) -> bool:
    """Map pages for reading; False where that cannot be.

    Parameters
    ----------
    address, nbytes
        Pages of one mapping, which stays where it is meanwhile; the last may be a part of one.
    """
    return _advise(address, nbytes, _POPULATE_READ)


def populate_write(address: int, nbytes: int) -> bool:
    """The same for writing; changes nothing."""
    return _advise(address, nbytes, _POPULATE_WRITE)


def _advise(address: int, nbytes: int, advice: int) -> bool:
    madvise = _madvise()
    return madvise is not None and madvise(address, nbytes, advice) == 0


@cache
def _madvise() -> ctypes._NamedFuncPointer | None:
    if sys.platform != "linux":
        return None  # there the numbers mean something else
    try:
        call = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    call.restype = ctypes.c_int
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return call
