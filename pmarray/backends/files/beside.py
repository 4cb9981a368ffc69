"""Reads of a data file that go on beside everything else, several requests at a time.

Three ways, which differ by what is in the page cache and by what it will be good for:

1. What is there already is copied out of it.
2. What will find room there is read through it, each request asked for as a whole first: then the
   device has as much to do as by direct requests, and who reads it again finds it.
3. The rest is read past it (O_DIRECT), where the file system has that. That leaves the processor to
   the computation, and throws nothing out that somebody else wants to read again.

How many requests, and of which size, ``pmarray doctor --reads`` measures.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from pmarray._geometry.requests import Request
from pmarray._system.descriptor import Descriptor
from pmarray._system.residency import all_resident, is_told, resident_share, sampled_share
from pmarray.errors import DamagedError, StorageError

__all__ = ["SideReads"]

_MOSTLY = 0.5


class SideReads:
    """Reads of one file, on any thread, also when whoever made this has closed the file.

    Parameters
    ----------
    fd
        The file; a descriptor of its own is kept as long as this is.
    path
        For errors.
    offset
        Where the items begin in the file.
    """

    def __init__(self, fd: int, path: str, offset: int) -> None:
        self._path = path
        self.offset = offset
        """Of the first item in the file."""
        self._descriptor = Descriptor.duplicate(fd)
        self._fd = self._descriptor.fileno()
        self._is_told = is_told(self._fd)
        self._share = resident_share if self._is_told else sampled_share
        """Tells which share of some bytes is in the page cache."""
        self._direct: Descriptor | None = None
        self._tried_direct = False

    def read(self, request: Request, out: memoryview, *, direct: bool) -> None:
        """Fill `out` with the bytes of a request, as far as the file goes.

        Raises
        ------
        DamagedError
            It does not go as far as it has to.
        StorageError
            The medium cannot be read.
        """
        share = self._share(self._fd, request.start, request.least)
        if direct and share < _MOSTLY and self._read_direct(request, out):
            return
        if share < 1 and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(
                self._fd, request.start, request.stop - request.start, os.POSIX_FADV_WILLNEED
            )
        self._read(self._fd, request, out)

    def are_resident(self, stretches: Sequence[tuple[int, int]], /) -> bool:
        """Whether some bytes of the file are in the page cache."""
        if self._is_told:
            return all_resident(self._fd, stretches)
        return all(self._share(self._fd, start, stop) == 1 for start, stop in stretches)

    def _read_direct(self, request: Request, out: memoryview) -> bool:
        direct = self._open_direct()
        if direct is None:
            return False
        try:
            self._read(direct.fileno(), request, out)
        except StorageError as error:
            if error.errno != errno.EINVAL:
                raise
            self._direct = None  # some take O_DIRECT at open, and refuse it then
            return False
        return True

    def _open_direct(self) -> Descriptor | None:
        if not self._tried_direct and hasattr(os, "O_DIRECT"):
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT
            try:
                # The same file, whatever has its name by now.
                self._direct = Descriptor(os.open(f"/proc/self/fd/{self._fd}", flags))
            except OSError:
                pass  # this file system has no direct reads
            self._tried_direct = True  # last: another thread may be here as well, which harms none
        return self._direct

    def _read(self, fd: int, request: Request, out: memoryview) -> None:
        at = request.start
        while at < request.least:
            try:
                done = os.preadv(fd, [out[at - request.start :]], at)
            except OSError as error:
                text = f"cannot read: {error.strerror}"
                raise StorageError(error.errno, text, self._path) from error
            if done == 0:
                raise DamagedError(
                    f"{self._path} is truncated: it ends at byte {at}, more is expected"
                )
            at += done
