"""Whether bytes of a file are in the system's page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from random import randrange

import numpy as np
from numpy.typing import NDArray

__all__ = ["is_told", "resident_share", "residents", "sampled_share"]

_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_SAMPLES = 8

_mincore = getattr(ctypes.CDLL(None), "mincore", None) if sys.platform == "linux" else None
if _mincore is not None:
    _mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def resident_share(fd: int, start: int, stop: int) -> float:
    """Return which share of the pages of a file from `start` to before `stop` is in memory.

    The system tells only who may write the file, or owns it (`is_told`); to others it says 1. Where
    it tells nobody, or the file ends before `start`, it is 0.
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
    return float(_look(memory.ctypes.data, memory.nbytes).mean())


def sampled_share(fd: int, start: int, stop: int) -> float:
    """The same of a few pages, for who may only read the file: by reads that would not wait.

    A page that is asked for in this way may come, so that others are each time.
    1 where a file system has no such reads, 0 where a system has none.
    """
    if stop <= start or not _NOWAIT:
        return 0.0
    step = max(mmap.PAGESIZE, -(-(stop - start) // _SAMPLES))
    places = range(start, stop, step)
    there, byte = 0, bytearray(1)
    for at in places:
        try:
            there += os.preadv(fd, [byte], randrange(at, min(stop, at + step)), _NOWAIT)
        except BlockingIOError:
            pass
        except OSError:
            return 1.0
    return there / len(places)


def is_told(fd: int) -> bool:
    """Whether the system tells this process which pages of a file are in memory."""
    if _mincore is None:
        return False
    owners = (0, os.fstat(fd).st_uid)
    return os.geteuid() in owners or os.access(f"/proc/self/fd/{fd}", os.W_OK)


def residents(memory: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return for each page of memory, a mapped file from the start of one, whether it is there."""
    return _look(memory.ctypes.data, memory.nbytes)


def _look(address: int, nbytes: int) -> NDArray[np.bool_]:
    count = -(-nbytes // mmap.PAGESIZE)
    pages = ctypes.create_string_buffer(count)  # of zeros
    if _mincore is not None and _mincore(address, nbytes, pages):
        pages = ctypes.create_string_buffer(count)
    found: NDArray[np.bool_] = (np.frombuffer(pages.raw, np.uint8) & 1).astype(bool)
    return found
