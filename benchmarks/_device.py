"""How fast the device itself takes bytes written in order."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

__all__ = ["write_bandwidth"]

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
