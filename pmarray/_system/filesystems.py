"""What the kind of a file system says about it."""

from __future__ import annotations

import os
import sys

from pmarray._system.descriptor import Descriptor

__all__ = ["is_local", "read_ahead_nbytes"]

_LOCAL = {b"ext4", b"xfs", b"btrfs", b"tmpfs"}
_MOUNTS = "/proc/self/mountinfo"
_BLOCK = "/sys/dev/block"
_PART_BYTES = 1 << 16


def is_local(device: int) -> bool:
    """Whether a device has one of the local file systems that were tried.

    There, a mapped page shows what system calls have written, and a name is looked up as it is now.
    Found out again for each call: another file system may have been mounted there.
    """
    if sys.platform != "linux":
        return False
    number = f"{os.major(device)}:{os.minor(device)}".encode()
    try:
        mounts = _contents(_MOUNTS)
    except OSError:
        return False  # /proc is not there, as in a bare chroot
    for line in mounts.splitlines():
        fields, _, rest = line.partition(b" - ")
        if fields.split()[2] == number:
            return rest.split()[0] in _LOCAL
    return False


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
