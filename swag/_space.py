"""Room for what is collected, on the disk that a store is on."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pmarray

__all__ = ["bytes_in_words", "free_bytes", "free_on_disk", "is_full", "is_in_memory"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MOUNTS = Path("/proc/self/mountinfo")
_IN_MEMORY = re.compile(" - (tmpfs|ramfs) ")
_LOCAL = re.compile(r"(memmap|zarr|icechunk|shelf):(?!\w+://)([^?#]*)")
_ESCAPED = {"%23": "#", "%3F": "?", "%25": "%"}


def is_in_memory(url: str) -> bool:
    """Whether a group is in memory, and takes it from everything else."""
    return url.startswith("dram:") and "?" not in url


def free_bytes(url: str) -> int | None:
    """Bytes that are free where a group is: in a folder of this machine, or in its memory.

    None of others.

    Examples
    --------
    >>> free_bytes("memmap:./posterior") > 0, free_bytes("dram:") > 0
    (True, True)
    >>> free_bytes("zarr:s3://bucket/x") is None
    True
    """
    if is_in_memory(url):
        return pmarray.config.available_memory
    match = _LOCAL.match(url)
    if match is None:
        return None
    text = re.sub("%23|%3F|%25", lambda found: _ESCAPED[found[0].upper()], match[2], flags=re.I)
    place = Path(text).expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent  # which will be made
    if not place.is_dir():
        return None
    space = os.statvfs(place)
    return space.f_bavail * space.f_frsize


def free_on_disk(folder: Path) -> int | None:
    """Bytes that are free where a folder is; None where that is a file system in memory."""
    device = os.stat(folder).st_dev
    of_device = f" {os.major(device)}:{os.minor(device)} "
    try:
        mounts = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:  # it is not Linux
        mounts = []
    for mount in mounts:
        if of_device in mount and _IN_MEMORY.search(mount):
            return None
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


def is_full(error: BaseException, url: str) -> bool:
    """Whether something could not be written to a group since its disk is full, or a quota reached.

    A file may be no larger than the file system can have it, or than ``ulimit -f`` says; what is
    kept in memory, no larger than that.

    Examples
    --------
    >>> is_full(MemoryError(), "dram:"), is_full(MemoryError(), "memmap:./posterior")
    (True, False)
    """
    full = MemoryError if is_in_memory(url) else ()
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, full) or (isinstance(seen, OSError) and seen.errno in _FULL):
            return True
        seen = seen.__cause__
    return False


def bytes_in_words(count: int) -> str:
    """A number of bytes as people say it.

    Examples
    --------
    >>> bytes_in_words(999), bytes_in_words(123_456_789)
    ('999 bytes', '117.7 MiB')
    """
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
