"""How readers learn, without a system call, that nothing has moved: a counter in a mapped page.

A writer adds one to it before it changes what a reader may be looking at (`Committer` says when).
A reader notes it before it looks, and finds it the same after it has read: then nothing moved in
between. It is opaque, compared for equality only, and never set back.

1. It lies in the lock file of the group, which the library never unlinks. A new writer adds one
   when it has the lock.
2. A hand may remove that file, and the next writer makes another one, which the readers of the old
   one do not see. So a reader believes the counter for `_TRUST_S` after it has seen the file in its
   place, and a writer that had to make the file of a group that is there waits longer than that.
3. The order of loads and stores is that of x86-64: who sees what was written after the counter
   moved, and loads the counter then, sees it moved. On other processors Python has no fence.
4. Mapped pages show what system calls have written on local file systems. Elsewhere, and where
   anything is in the way, there is no counter, and readers ask the file system.
"""

from __future__ import annotations

import mmap
import os
import sys
import time

from pmarray._system import osops
from pmarray._system.beneath import Below, status
from pmarray._system.files import write_fully
from pmarray._system.filesystems import is_local

__all__ = ["Counter", "advance", "await_readers"]

_OFFSET = 64
"""Behind the name of the lock's owner."""
_NBYTES = 8
_TRUST_S = 0.004
_WAIT_S = 0.01


def advance(fd: int) -> None:
    """Move the counter of a lock file on; the caller has the lock.

    Raises
    ------
    OSError
        It has not moved: what was to be announced must not be done.
    """
    if os.fstat(fd).st_size < mmap.PAGESIZE:
        # A page of its own: some file systems keep short files where they keep names.
        rest = memoryview(bytes(mmap.PAGESIZE - _OFFSET))
        write_fully(fd, [rest], _OFFSET, path="the lock file")
    value = int.from_bytes(os.pread(fd, _NBYTES, _OFFSET).ljust(_NBYTES, b"\0"), sys.byteorder)
    osops.count(fd, value + 1, _OFFSET)


def await_readers() -> None:
    """Wait until no reader believes the counter of a lock file that was removed."""
    time.sleep(_WAIT_S)


class Counter:
    """The counter of a group, as a reader sees it.

    Parameters
    ----------
    path
        The lock file.

    Raises
    ------
    OSError
        There is none, or none to rely on.
    """

    def __init__(self, path: Below) -> None:
        if sys.platform != "linux" or os.uname().machine != "x86_64":
            raise OSError("readers ask the file system on this machine")
        self._path = path
        fd = osops.open_file(path)
        try:
            found = os.fstat(fd)
            self._identity = found.st_dev, found.st_ino
            if found.st_size < mmap.PAGESIZE or not is_local(fd):
                raise OSError("no writer has counted there")
            page = mmap.mmap(fd, mmap.PAGESIZE, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
            # Whoever looks at it first would have to wait for the medium.
            os.posix_fadvise(fd, 0, mmap.PAGESIZE, os.POSIX_FADV_WILLNEED)
        finally:
            osops.close(fd)
        self._values = memoryview(page).cast("Q")
        self._seen = 0.0
        self.lost = False
        """Whether the file was seen to be another one: this one tells nothing any more."""

    @property
    def value(self) -> int:
        """What it says now."""
        return self._values[_OFFSET // _NBYTES]

    def is_still(self, value: int) -> bool:
        """Whether it has been at `value` until now."""
        if self._values[_OFFSET // _NBYTES] != value:
            return False
        now = time.monotonic()
        if now - self._seen < _TRUST_S:
            return True
        # Seen in its place now, so that it was in use until now; the time is that before the look.
        found = status(self._path)
        if found is None or (found.st_dev, found.st_ino) != self._identity:
            self.lost = True
            return False
        self._seen = now
        return self._values[_OFFSET // _NBYTES] == value
