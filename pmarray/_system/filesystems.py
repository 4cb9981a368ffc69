"""What the kind of a file system says about it."""

from __future__ import annotations

import ctypes
import os
import sys

from pmarray._system.descriptor import Descriptor

__all__ = ["is_local", "read_ahead_nbytes"]

_LOCAL = {
    0xEF53,  # ext4
    0x58465342,  # xfs
    0x9123683E,  # btrfs
    0x01021994,  # tmpfs
}
"""What `statfs` calls them, from ``linux/magic.h``."""
_STATFS_BYTES = 512
"""More than a `struct statfs` has."""
_BLOCK = "/sys/dev/block"
_PART_BYTES = 1 << 16

_fstatfs = getattr(ctypes.CDLL(None), "fstatfs", None) if sys.platform == "linux" else None


def is_local(fd: int) -> bool:
    """Whether a file or directory is on one of the local file systems that were tried.

    There, a mapped page shows what system calls have written, and a name is looked up as it is now.
    """
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    if _fstatfs is None or _fstatfs(fd, found):
        return False
    # It begins with the type, a C long.
    return ctypes.c_ulong.from_buffer(found).value & 0xFFFFFFFF in _LOCAL


def read_ahead_nbytes(device: int) -> int:
    """Return how far the system reads ahead in files of a device; 0 where it does not tell."""
    here = f"{_BLOCK}/{os.major(device)}:{os.minor(device)}"
    for queue in ("queue", "../queue"):  # that of a partition is its disk's
        try:
            return int(_contents(f"{here}/{queue}/read_ahead_kb")) << 10
        except (OSError, ValueError):
            continue
    return 0


def _contents(path: str) -> bytes:
    # An exception that a signal raises in a `with open` would leave the file open.
    (descriptor,) = map(Descriptor, map(os.open, (path,), (os.O_RDONLY | os.O_CLOEXEC,)))
    parts = []
    while part := os.read(descriptor.fileno(), _PART_BYTES):
        parts.append(part)
    return b"".join(parts)
