"""The items of one array, or a journal, in a file that is reached by system calls."""

from __future__ import annotations

import errno
import mmap
import os
import sys
import time
import weakref
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pmarray._dtypes import DType
from pmarray._formats.npy import write_header
from pmarray._geometry.layout import BLOCK_BYTES, Layout
from pmarray._sizes import format_bytes
from pmarray._system import osops
from pmarray._system.beneath import Below, status
from pmarray._system.files import barrier, read_fully, write_fully
from pmarray._system.threads import DaemonPool
from pmarray._system.uninterrupted import uninterrupted
from pmarray.backends.files.beside import SideReads
from pmarray.backends.files.kept import KeptMapping
from pmarray.errors import DamagedError, ForeignDataError, StorageError
from pmarray.locks import Lock

__all__ = ["MAPPED_BYTE", "FileRegion", "if_there", "make_journal_file"]

_GROW_MIN_BYTES = 64 << 20
_GROW_MAX_BYTES = 1 << 30
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SPARED = 4
"""Of the room on a disk that is nearly full, growth behind takes one part in so many at most."""

BEHIND = DaemonPool(1, "pmarray-growing")
"""Files grow here, ahead of who appends to them."""
_REGIONS: weakref.WeakSet[FileRegion] = weakref.WeakSet()

MAPPED_BYTE = 1
"""Whoever maps a file has a shared lock of this byte, whoever cuts it an exclusive one."""
_STAT_BLOCK_BYTES = 512
_TRIES = 100
_RETRY_S = 0.01
# Memory for pages that nobody is going to store to is not reserved. Python names it from 3.13 on.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_CLOCK_NS = 2_000_000_000
"""Two writes within this may leave a file with the same times."""


class FileRegion:
    """The items of one array in a file, `data_offset` bytes from its start.

    A file that is appended to grows behind, a step ahead of its writer (`will_grow`): the file
    system may keep whoever makes it grow waiting, for its own journal or for a write under way.
    What it has grown by is part of `capacity` when `reserve` comes to need it, and not before, so
    that a file which was longer than it had to be when its writer died is like any other.

    Parameters
    ----------
    path
        The file, which exists.
    data_offset
        Where the items begin.
    writable
        Whether it may be written.
    aligned
        Whether all writes come in whole blocks; then, and where the file system allows it, they
        are direct.
    foreign_nbytes
        Set for a file of another program: how many bytes of items it has. Its header is left
        alone, and so is what follows the items.
    sparse
        Whether the file grows by holes, which take room on the disk when they are written to.
    """

    memory = None

    def __init__(
        self,
        path: str,
        data_offset: int,
        *,
        writable: bool,
        aligned: bool,
        foreign_nbytes: int | None = None,
        sparse: bool = False,
    ) -> None:
        self.path = path
        self._offset = data_offset
        self._sparse = sparse
        self.capacity = self._allocated = 0
        """Bytes that may be used, and bytes that the file has by now."""
        self._to_allocate = 0
        """Up to where it is to grow behind."""
        self._growing = Lock()
        """Held while the file grows or is cut, and when its descriptors are closed."""
        self._closed = False
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        self._kept: KeptMapping | None = None
        self._keeps: weakref.WeakSet[KeptMapping] = weakref.WeakSet()
        """What is still in use; `_kept` is the last one made."""
        self._direct_fd: int | None = None
        self._beside: SideReads | None = None
        try:
            self._fd = osops.open_file(path, write=writable)
            try:
                if writable and aligned and data_offset % BLOCK_BYTES == 0:
                    self._direct_fd = _open_direct(path)
                self._opened = self._settled_stamp()
                self.refresh()
            except BaseException:
                self.close()
                raise
            self._foreign = foreign_nbytes is not None
            self._followed = foreign_nbytes is not None and self.capacity > foreign_nbytes
            if foreign_nbytes is not None:
                self.capacity = self._allocated = min(self.capacity, foreign_nbytes)
        except OSError as error:
            text = f"cannot open: {error.strerror}"
            if writable and error.errno in _FORBIDDEN:
                text += ' (mode="r" opens it to read alone)'
            raise StorageError(error.errno, text, path) from error
        _REGIONS.add(self)
        self._direct_proved = False
        self.block_bytes = BLOCK_BYTES if self._direct_fd is not None else 1

    def unchanged_stamp(self) -> tuple[int, ...] | None:
        """Tell this state of the file from all others.

        None where something was written since the file was opened, so that a cache may hold the
        old and the new, or so shortly before that its times cannot tell.
        """
        stamp = self._settled_stamp()
        return stamp if stamp == self._opened else None

    def _settled_stamp(self) -> tuple[int, ...] | None:
        found = os.fstat(self._fd)
        if abs(time.time_ns() - found.st_mtime_ns) < _CLOCK_NS:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def read_into(self, offset: int, out: memoryview, /) -> None:
        read_fully(self._fd, out, self._offset + offset, path=self.path)

    def will_read(self, offset: int, nbytes: int, /) -> None:
        if hasattr(os, "posix_fadvise") and not self._closed:
            try:
                os.posix_fadvise(self._fd, self._offset + offset, nbytes, os.POSIX_FADV_WILLNEED)
            except OSError:
                pass  # who reads without the group's lock may be behind its closing

    def write(self, offset: int, buffers: Sequence[memoryview], /) -> None:
        try:
            self._write(offset, buffers)
        finally:
            if self._kept is not None:
                self._kept.written(offset, sum(buffer.nbytes for buffer in buffers))

    def _write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if self._is_short():
            with self._growing:  # it may have grown, or been trimmed, between the two questions
                self._refuse_cut()
        if self._direct_fd is not None:
            try:
                write_fully(self._direct_fd, buffers, self._offset + offset, path=self.path)
                self._direct_proved = True
                return
            except StorageError as error:
                # Some file systems take O_DIRECT at open and refuse it at the first write. Once
                # one direct write has succeeded the file stays with them.
                if error.errno != errno.EINVAL or self._direct_proved:
                    raise
            osops.close(self._direct_fd)
            self._direct_fd = None
        write_fully(self._fd, buffers, self._offset + offset, path=self.path)

    def barrier(self) -> None:
        barrier(self._fd, path=self.path)

    def reserve(self, nbytes: int, /) -> None:
        """Allocate ahead of need: a full disk is an error here, and extents stay large."""
        if nbytes <= self.capacity:
            return
        if self._followed:
            raise ForeignDataError(
                f"{self.path} goes on after its array, perhaps with another one, and would be "
                "overwritten; copy the array into a directory to let it grow"
            )
        with self._growing:
            self.capacity = max(self.capacity, self._allocated)
            if nbytes > self.capacity:
                self._reserve(nbytes)

    def _reserve(self, nbytes: int) -> None:
        exact = -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES
        generous = max(exact, self.capacity + self._step()) if self.capacity else exact
        before = self.capacity
        try:
            self._allocate(generous)
        except OSError as error:
            if error.errno not in _FULL:
                raise StorageError(
                    error.errno, f"cannot grow: {error.strerror}", self.path
                ) from error
            # What was allocated before the disk was full would leave none for the metadata.
            self._unreserve(before)
            try:
                self._allocate(exact)
            except OSError as again:
                self._unreserve(before)
                raise StorageError(
                    again.errno,
                    f"cannot reserve {format_bytes(exact - before)} more "
                    f"({again.strerror}); nothing was changed: free space and try again",
                    self.path,
                ) from again
        self.capacity = self._allocated

    def will_grow(self, nbytes: int, more: int, /) -> None:
        """Grow behind, where little is left; see `Appendable.will_grow`."""
        step = self._step()
        ahead = min(max(step, more), _GROW_MAX_BYTES)
        wanted = self.capacity + ahead
        if (
            self.capacity - nbytes < max(step // 2, more)
            and wanted > max(self._allocated, self._to_allocate)
            and nbytes - more >= more  # so long before: it is not filled at one go
            and not (self._sparse or self._foreign)
        ):
            self._to_allocate = wanted
            BEHIND.submit(_grow_behind, weakref.ref(self))

    def grow_behind(self) -> None:
        """Do what `will_grow` has asked for, if nobody was faster; on the thread.

        Where that cannot be, whoever needs the room finds out.
        """
        with self._growing:
            before = self._allocated
            more = self._to_allocate - before
            if self._closed or more <= 0:
                return
            try:
                free = os.fstatvfs(self._fd)
                if free.f_bavail * free.f_frsize < _SPARED * more:
                    return
                self._allocate(self._to_allocate)
            except OSError:
                self._unreserve(before)
            except DamagedError:
                pass  # which whoever needs the room is told

    def _step(self) -> int:
        return min(max(self.capacity // 4, _GROW_MIN_BYTES), _GROW_MAX_BYTES)

    def _is_short(self) -> bool:
        return self._there() < self._allocated

    def _there(self) -> int:
        return max(0, os.fstat(self._fd).st_size - self._offset)

    def _refuse_cut(self) -> None:
        """Raise where somebody else has cut the file: made longer, it would hold zeros there.

        To be called with `_growing` held.
        """
        if self._is_short():
            raise DamagedError(
                f"{self.path} was cut by another program: of {self._allocated} bytes of data, "
                f"{self._there()} are there; close the group and restore the file from a backup"
            )

    def _allocate(self, nbytes: int) -> None:
        self._refuse_cut()
        start = self._offset + self._allocated
        if self._sparse:
            osops.ftruncate(self._fd, self._offset + nbytes)
        else:
            osops.fallocate(self._fd, start, self._offset + nbytes - start)
        self._allocated = nbytes

    def _unreserve(self, nbytes: int) -> None:
        try:
            if os.fstat(self._fd).st_size <= self._offset + nbytes:
                return
            osops.ftruncate(self._fd, self._offset + nbytes)
        except OSError:
            pass  # the file is longer than it needs to be, which harms nothing

    def refresh(self) -> None:
        self.capacity = self._allocated = self._there()

    def describe(self, layout: Layout, dtype: DType, ndim: int, /) -> None:
        if self._foreign:
            return  # `NpyFileBackend.save` does it, when the shape has changed
        header = write_header(layout, dtype, ndim=ndim, nbytes=self._offset)
        write_fully(self._fd, [memoryview(header)], 0, path=self.path)

    def trim(self, nbytes: int, /) -> None:
        """Give back the space beyond `nbytes`, unless somebody has it mapped.

        A load from a page that was cut off would kill the process. The next writer tries again.
        """
        exact = nbytes if self._foreign else -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES
        with self._growing:
            self._to_allocate = 0
            if exact >= self._allocated or self._followed or any(True for _ in self._maps):
                return
            self._kept = None
            if any(True for _ in self._keeps):
                return  # somebody is reading through it
            try:
                self._cut(exact)
            except OSError as error:
                raise StorageError(
                    error.errno, f"cannot cut: {error.strerror}", self.path
                ) from error

    def _cut(self, nbytes: int) -> None:
        try:
            osops.lock(self._fd, exclusive=True, start=MAPPED_BYTE, nbytes=1)
        except (BlockingIOError, PermissionError):
            return
        if os.fstat(self._fd).st_size > self._offset + nbytes:  # and not one that was cut before
            osops.ftruncate(self._fd, self._offset + nbytes)
        self.capacity = self._allocated = nbytes
        osops.unlock(self._fd)

    def announce(self) -> bool:
        """Keep every writer from cutting the file, for as long as this or a mapping is open.

        The lock belongs to the open file, which a mapping keeps open, also in a forked process.
        Returns false where that cannot be.
        """
        for _ in range(_TRIES):
            try:
                osops.lock(self._fd, exclusive=False, start=MAPPED_BYTE, nbytes=1)
                return True
            except (BlockingIOError, PermissionError):
                time.sleep(_RETRY_S)  # it is being cut, which does not take long
            except OSError:
                return False  # a file system without locks
        return False

    def view(self, nbytes: int, /) -> NDArray[np.uint8] | None:
        """Map the file; see `Region.view`.

        The mapping is private and may be written: whoever stores to it in spite of the array's
        flag gets a page of its own, and harms nobody. Pages that are not stored to are those of the
        file, whoever changes it.
        """
        if nbytes == 0:
            return np.frombuffer(b"", np.uint8)
        stop = self._offset + nbytes
        if not self.announce() or os.fstat(self._fd).st_size < stop:
            return None
        flags, prot = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        try:
            mapping = mmap.mmap(self._fd, stop, flags=flags, prot=prot)
        except OSError:  # where the system counts all the same (vm.overcommit_memory=2)
            mapping = mmap.mmap(self._fd, stop, access=mmap.ACCESS_READ)
        self._maps.add(mapping)
        return np.frombuffer(memoryview(mapping).toreadonly(), np.uint8)[self._offset :]

    def keep_mapped(self, nbytes: int, /) -> KeptMapping | None:
        """Map the file for reading, as long as it is now; see `KeepsMapping.keep_mapped`.

        Not that of another program: it may be cut by it, and could not be by us. Not one with
        holes: on some file systems a page of a hole takes room, and there may be none.
        """
        if self._kept is not None and len(self._kept.memory) >= nbytes:
            return self._kept
        self._kept = None
        found = os.fstat(self._fd)
        there = found.st_size - self._offset
        has_holes = found.st_blocks * _STAT_BLOCK_BYTES < found.st_size
        if self._foreign or has_holes or there < nbytes or not self.announce():
            return None
        try:
            self._kept = KeptMapping(self._fd, self.path, self._offset, there)
        except OSError:
            return None  # a system or a file system that has none
        self._keeps.add(self._kept)
        return self._kept

    def beside(self) -> SideReads:
        """Return what reads the file without this; see `ReadsBeside.beside`."""
        if self._beside is None:
            # An exception must not arrive between a descriptor and what will close it.
            self._beside = uninterrupted(lambda: SideReads(self._fd, self.path, self._offset))
        return self._beside

    def close(self) -> None:
        self._kept = self._beside = None
        try:
            with self._growing:
                if self._closed:
                    return
                self._closed = True
                try:
                    if self._direct_fd is not None:
                        osops.close(self._direct_fd)
                finally:
                    osops.close(self._fd)
        except OSError as error:
            raise StorageError(error.errno, f"cannot close: {error.strerror}", self.path) from error


def _grow_behind(reference: weakref.ref[FileRegion]) -> None:
    if (region := reference()) is not None:
        region.grow_behind()


def _begin_in_child() -> None:
    for region in list(_REGIONS):
        region._growing = Lock()  # the thread that grows files may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


def _open_direct(path: str) -> int | None:
    """Open for direct I/O, or return None where the file system has none."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return osops.open_file(path, write=True, direct=True)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise


def if_there(open_region: Callable[[], FileRegion]) -> FileRegion | None:
    """Open a file that another process may be removing; None where it is gone."""
    try:
        return open_region()
    except StorageError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def make_journal_file(path: Below) -> None:
    """Make an empty file, durably, unless it is there."""
    try:
        if status(path) is None:
            osops.close(osops.open_file(path, write=True, create=True))
        # Also if it was there: whoever made it may have died before this.
        osops.fsync_directory(path.parent)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(error.errno, f"cannot create: {error.strerror}", path) from error
