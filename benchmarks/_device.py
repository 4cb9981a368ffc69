"""How fast the machine itself is: bytes written in order, memory touched for the first time."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import numpy as np

__all__ = ["fresh_memory_bandwidth", "read_bandwidth", "write_bandwidth"]

_BLOCK_BYTES = 8 << 20


def write_bandwidth(directory: Path, *, nbytes: int = 512 << 20) -> float:
    """Write a new file in large pieces, past the page cache if possible, and make it durable.

    Parameters
    ----------
    directory
        Where to write; the file is removed.
    nbytes
        How much: the default takes a fast disk a few tenths of a second.

    Returns
    -------
    float
        Bytes a second, the final ``fsync`` included.
    """
    path = directory / "bandwidth"
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    try:
        handle = os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o600)
    except OSError:  # a file system in memory, or some overlays
        path.unlink(missing_ok=True)
        handle = os.open(path, flags, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):  # allocated beforehand, as the library does
            os.posix_fallocate(handle, 0, nbytes)
        with mmap.mmap(-1, _BLOCK_BYTES) as block:  # direct I/O needs a page-aligned buffer
            block.write(os.urandom(1 << 20) * (_BLOCK_BYTES >> 20))
            started = time.perf_counter()
            for offset in range(0, nbytes, _BLOCK_BYTES):
                os.pwrite(handle, block, offset)
            os.fsync(handle)
            return nbytes / (time.perf_counter() - started)
    finally:
        os.close(handle)
        path.unlink()


def read_bandwidth(directory: Path, *, nbytes: int = 512 << 20) -> float:
    """Read a new file in large pieces, past the page cache if possible.

    Parameters
    ----------
    directory
        Where it is; the file is removed.
    nbytes
        How much.

    Returns
    -------
    float
        Bytes a second.
    """
    path = directory / "bandwidth"
    try:
        with open(path, "xb") as file:
            for _ in range(0, nbytes, _BLOCK_BYTES):
                file.write(os.urandom(1 << 20) * (_BLOCK_BYTES >> 20))
            os.fsync(file.fileno())
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
        except OSError:
            handle = os.open(path, os.O_RDONLY)
        try:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(-1, _BLOCK_BYTES) as block:
                started = time.perf_counter()
                for offset in range(0, nbytes, _BLOCK_BYTES):
                    os.preadv(handle, [block], offset)
                return nbytes / (time.perf_counter() - started)
        finally:
            os.close(handle)
    finally:
        path.unlink(missing_ok=True)


def fresh_memory_bandwidth(nbytes: int = 256 << 20) -> float:
    """Store once to every page of new memory, which is when the system provides it.

    What is kept in memory and grows pays this for every column. It is a property of the machine:
    a virtual one may have to ask its host for each page.

    Returns
    -------
    float
        Bytes a second.
    """
    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        if hasattr(mmap, "MADV_HUGEPAGE"):  # as the library asks for its memory
            memory.madvise(mmap.MADV_HUGEPAGE)
        pages = np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE]
        started = time.perf_counter()
        pages[:] = 1
        seconds = time.perf_counter() - started
        del pages  # the mapping cannot be closed while something refers to it
    return nbytes / seconds
