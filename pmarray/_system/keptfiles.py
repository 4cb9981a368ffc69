"""Files that stay open for who reads them again: to open one costs more than a short read.

What is read is what a file of that name holds now: its name is looked up each time, and has to be
that of the file that is open. Network file systems may answer that from what they remember, so
nothing of theirs is kept.

A read here waits for no medium and opens nothing. So it may be made on any thread, also on one in
which an exception may arrive at any moment.
"""

from __future__ import annotations

import os
import resource
import weakref
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmarray._system.descriptor import Descriptor
from pmarray._system.filesystems import is_local

__all__ = ["KeptFiles", "Parts"]

Parts = Sequence[tuple[int, NDArray[np.uint8]]]
"""Where in a file or a chunk, and where to."""

_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_MOST = 1024
_SHARE = 4
"""Of the descriptors that a process may have, the part that is used here."""
_RARELY = 8
"""Where there is no room, only one file of so many takes the place of another: who goes through
more of them than there is room for, again and again, would find none otherwise."""


class _Kept(NamedTuple):
    descriptor: Descriptor
    path: str
    identity: tuple[int, int]


class KeptFiles:
    """Open files, by name; of all of these, a process keeps a limited number."""

    _all: ClassVar[weakref.WeakSet[KeptFiles]] = weakref.WeakSet()

    def __init__(self) -> None:
        self._files: dict[str, _Kept] = {}
        self._asked = 0
        self._all.add(self)

    def keep(self, name: str, path: str, descriptor: Descriptor) -> None:
        """Keep a file that was opened by its path, if there is room."""
        if not _NOWAIT or not is_local(descriptor.fileno()):
            return
        if name not in self._files and not self._has_room():
            self._asked += 1
            if self._asked % _RARELY:
                return
            self._drop_oldest()
        found = os.fstat(descriptor.fileno())
        self._files[name] = _Kept(descriptor, path, (found.st_dev, found.st_ino))

    def _has_room(self) -> bool:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _MOST if soft == resource.RLIM_INFINITY else min(_MOST, soft // _SHARE)
        return sum(len(one._files) for one in list(self._all)) < most

    def _drop_oldest(self) -> None:
        most = max(list(self._all), key=lambda one: len(one._files))
        for name in list(most._files)[:1]:
            most.drop(name)

    def read(self, name: str, parts: Parts, nbytes: int) -> bool:
        """Fill memory with parts of a file that is kept, has `nbytes` bytes, and is in memory.

        Each part is given by its first byte, and by memory that is as long as it. False where that
        cannot be; the memory then holds anything.
        """
        kept = self._files.get(name)
        if kept is None:
            return False
        try:
            found = os.stat(kept.path, follow_symlinks=False)
            if (found.st_dev, found.st_ino) != kept.identity:
                self.drop(name)
                return False
            if found.st_size != nbytes:
                return False  # who opens it says what is wrong
            fd = kept.descriptor.fileno()
            for start, out in parts:
                if os.preadv(fd, [out.data], start, _NOWAIT) != out.nbytes:
                    return False
        except OSError:
            return False  # it would have to wait, or cannot be told; or it is gone
        return True

    def drop(self, name: str) -> None:
        """Close a file, as soon as nobody reads it any more."""
        self._files.pop(name, None)

    def clear(self) -> None:
        """Close all of them."""
        self._files.clear()
