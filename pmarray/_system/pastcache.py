"""Writing a new file past the page cache (O_DIRECT), from memory that need not be aligned.

What is to be durable at once gains nothing from the kernel's copy of it, and finding fresh pages
for that costs more processor time than anything else. From memory that is aligned, such as a
cache's buffer, all but the last bytes go as they are, in one write. What is not is copied, a piece
at a time, to aligned memory that is used again.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

import numpy as np

from pmarray._geometry.layout import BLOCK_BYTES
from pmarray._system import osops
from pmarray._system.files import write_fully
from pmarray.errors import StorageError

__all__ = ["write_new"]

_MIN_BYTES = 1 << 20
"""Of less, the kernel has pages at hand, and takes it faster than the medium."""
_PIECE_BYTES = 2 << 20
_MAX_SPARE = 4
_O_DIRECT = getattr(os, "O_DIRECT", 0)

_spare: list[memoryview] = []
"""Pieces of memory that nobody uses."""


def write_new(fd: int, data: memoryview, *, path: str) -> None:
    """Write all that an empty file is to hold; durable after a barrier.

    Parameters
    ----------
    fd
        The file, which is left without the kernel's cache, where its file system knows that.
    data
        Bytes, one after another.
    path
        What messages call the file.

    Raises
    ------
    StorageError
        The medium takes no more; what is in the file is undefined.
    """
    if data.nbytes >= _MIN_BYTES and _set_direct(fd, True):
        try:
            start = data.nbytes // BLOCK_BYTES * BLOCK_BYTES if _is_aligned(data) else 0
            write_fully(fd, [data[:start]], 0, path=path)
            _write_pieces(fd, data[start:], start, path)
            return
        except StorageError as error:
            if error.errno != errno.EINVAL:
                raise
        # Some file systems take O_DIRECT here, and refuse it at a write.
        _set_direct(fd, False)
    write_fully(fd, [data], 0, path=path)


def _write_pieces(fd: int, data: memoryview, offset: int, path: str) -> None:
    """Copy what follows the first `offset` bytes of a file, and write it."""
    if not data.nbytes:
        return
    try:
        memory = _spare.pop()
    except IndexError:
        # Private: processes that were forked must not write through one another's.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = memoryview(mmap.mmap(-1, _PIECE_BYTES, flags=private))
    for start in range(0, data.nbytes, _PIECE_BYTES):
        piece = data[start : start + _PIECE_BYTES]
        whole = -(-piece.nbytes // BLOCK_BYTES) * BLOCK_BYTES
        memory[: piece.nbytes] = piece
        write_fully(fd, [memory[:whole]], offset + start, path=path)
    if data.nbytes % BLOCK_BYTES:
        osops.ftruncate(fd, offset + data.nbytes)
    if len(_spare) < _MAX_SPARE:
        _spare.append(memory)


def _is_aligned(data: memoryview) -> bool:
    return np.frombuffer(data, np.uint8).ctypes.data % BLOCK_BYTES == 0


def _set_direct(fd: int, direct: bool) -> bool:
    """Have writes to `fd` go past the cache, or through it; False where that cannot be."""
    if not _O_DIRECT:
        return False
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~_O_DIRECT
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | (_O_DIRECT if direct else 0))
    except OSError:
        return False
    return True
