"""A file read from its beginning to its end, by every plain way that there is."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

__all__ = ["WAYS"]

_REQUEST_BYTES = 4 << 20
_WINDOW_BYTES = 32 << 20


def _in_requests(path: Path, count: int, *, direct: bool) -> None:
    """Read by so many threads, a request each; buffered ones are asked for ahead."""
    size = path.stat().st_size
    handle = os.open(path, os.O_RDONLY | (getattr(os, "O_DIRECT", 0) if direct else 0))
    offsets = iter(range(0, size, _REQUEST_BYTES))
    turn = threading.Lock()

    def work() -> None:
        with mmap.mmap(-1, _REQUEST_BYTES) as buffer:  # direct I/O needs it page-aligned
            while True:
                with turn:
                    offset = next(offsets, None)
                if offset is None:
                    return
                if not direct and hasattr(os, "posix_fadvise"):
                    ahead = offset + _WINDOW_BYTES
                    os.posix_fadvise(handle, ahead, _REQUEST_BYTES, os.POSIX_FADV_WILLNEED)
                os.preadv(handle, [buffer], offset)

    try:
        if not direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, _WINDOW_BYTES, os.POSIX_FADV_WILLNEED)
        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os.close(handle)


def _by_mapping(path: Path) -> None:
    items = np.memmap(path, np.uint64, "r", shape=path.stat().st_size // 8)
    for start in range(0, items.size, _REQUEST_BYTES // 8):
        items[start : start + _REQUEST_BYTES // 8].max()


WAYS: dict[str, Callable[[Path], None]] = {
    **{f"direct, {n} at a time": partial(_in_requests, count=n, direct=True) for n in (1, 2, 4, 8)},
    **{f"read-ahead, {n} at a time": partial(_in_requests, count=n, direct=False) for n in (1, 2)},
    "np.memmap": _by_mapping,
}
"""What reads a file that is given, by its name."""
