"""Whether bytes of a file are in the system's page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence
from random import randrange

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "all_resident",
    "is_resident",
    "is_told",
    "resident_share",
    "residents",
    "sampled_share",
]

_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_SAMPLES = 8
_LOWEST_BIT = bytes(byte & 1 for byte in range(256))

_mincore = getattr(ctypes.CDLL(None), "mincore", None) if sys.platform == "linux" else None
if _mincore is not None:
    _mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def resident_share(fd: int, start: int, stop: int) -> float:
    """Return which share of the pages of a file from `start` to before `stop` is in memory.

    The system tells only who may write the file, or owns it (`is_told`); to others it says 1. Where
    it tells nobody, or the file ends before `start`, it is 0.
    """
    _, memory = _mapped(fd, start, stop)
    if memory is None:
        return 0.0
    pages = _look(memory.ctypes.data, memory.nbytes)
    return pages.count(1) / len(pages)


def all_resident(fd: int, stretches: Sequence[tuple[int, int]]) -> bool:
    """Whether all bytes of some stretches of a file are in memory; see `resident_share`.

    The file is mapped once for all of them.
    """
    start, stop = min(low for low, _ in stretches), max(high for _, high in stretches)
    first, memory = _mapped(fd, start, stop)
    if memory is None:
        return False
    address = memory.ctypes.data - first
    return all(is_resident(address + low, high - low) for low, high in stretches)


def _mapped(fd: int, start: int, stop: int) -> tuple[int, NDArray[np.uint8] | None]:
    """Map a part of a file, of which nothing is loaded; return where it begins, too."""
    first = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    if _mincore is None or stop <= start:
        return first, None
    try:
        mapped = mmap.mmap(fd, stop - first, mmap.MAP_SHARED, mmap.PROT_READ, offset=first)
    except (OSError, ValueError):  # it is shorter, or cannot be mapped
        return first, None
    return first, np.frombuffer(mapped, np.uint8)


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
    return np.frombuffer(bytearray(_look(memory.ctypes.data, memory.nbytes)), np.bool_)


def is_resident(address: int, nbytes: int) -> bool:
    """Whether all pages of some bytes of a mapped file are there."""
    before = address % mmap.PAGESIZE
    return b"\0" not in _look(address - before, nbytes + before)


def _look(address: int, nbytes: int) -> bytes:
    """Return a byte for each page, 1 where it is there."""
    count = -(-nbytes // mmap.PAGESIZE)
    pages = ctypes.create_string_buffer(count)  # of zeros
    if _mincore is not None and _mincore(address, nbytes, pages):
        pages = ctypes.create_string_buffer(count)
    return pages.raw.translate(_LOWEST_BIT)
