"""``memmap:/dir`` - a directory of ``.npy`` files on any file system; a bare path means the same.

::

    dir/
      pmarray.json          metadata, the authority; replaced in one durable step
      lock                  locked by the one writer, and holding its process id
      journal               before-images and commits, once there was a transaction
      data/000001.npy       one file an array, numbered, never renamed
      array.npy             a symbolic link to the data file of the array "array"

A data file is a valid ``.npy``: a header of one block, then the items. Its header is a
convenience for other programs, rewritten at `flush`; shapes are those of the metadata.

Data are written with direct I/O where the file system has it and the chunks are whole blocks,
through the page cache otherwise, and one file only ever one of the two ways. They are read through
the page cache, which the kernel keeps coherent with direct writes. Files are never stored to
through a mapping, since the kernel may write a dirty page at any moment.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
import weakref
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pmarray import _osops
from pmarray._dtypes import DType
from pmarray._files import barrier, read_fully, replace_durably, write_fully
from pmarray._lockfile import LockFile
from pmarray._metadata import ArrayMetadata, Checkpoint
from pmarray._npy import write_header
from pmarray._sizes import format_bytes
from pmarray._url import URL
from pmarray.backends import npyfile
from pmarray.errors import (
    DamagedError,
    ForeignDataError,
    StorageError,
    URLError,
)
from pmarray.layout import BLOCK_BYTES, Layout

__all__ = ["FileRegion", "MemmapBackend", "open_backend"]

METADATA_NAME = "pmarray.json"
LOCK_NAME = "lock"
DATA_NAME = "data"
JOURNAL_NAME = "journal"
_GROW_MIN_BYTES = 64 << 20
_GROW_MAX_BYTES = 1 << 30


_CLOCK_NS = 2_000_000_000
"""Two writes within this may leave a file with the same times."""


class FileRegion:
    """The items of one array in a file, `data_offset` bytes from its start.

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
    ) -> None:
        self.path = path
        self._offset = data_offset
        self._closed = False
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        try:
            self._fd = _osops.open_file(path, write=writable)
            self._direct_fd: int | None = None
            if writable and aligned and data_offset % BLOCK_BYTES == 0:
                self._direct_fd = _open_direct(path)
            self._opened = self._settled_stamp()
            self.capacity = max(0, os.fstat(self._fd).st_size - data_offset)
            self._foreign = foreign_nbytes is not None
            self._followed = foreign_nbytes is not None and self.capacity > foreign_nbytes
            if foreign_nbytes is not None:
                self.capacity = min(self.capacity, foreign_nbytes)
        except OSError as error:
            raise StorageError(error.errno, f"cannot open: {error.strerror}", path) from error
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
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, self._offset + offset, nbytes, os.POSIX_FADV_WILLNEED)

    def write(self, offset: int, buffers: Sequence[memoryview], /) -> None:
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
            _osops.close(self._direct_fd)
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
        step = min(max(self.capacity // 4, _GROW_MIN_BYTES), _GROW_MAX_BYTES)
        exact = -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES
        generous = max(exact, self.capacity + step) if self.capacity else exact
        before = self.capacity
        try:
            self._allocate(generous)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
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

    def _allocate(self, nbytes: int) -> None:
        start = self._offset + self.capacity
        _osops.fallocate(self._fd, start, self._offset + nbytes - start)
        self.capacity = nbytes

    def _unreserve(self, nbytes: int) -> None:
        try:
            _osops.ftruncate(self._fd, self._offset + nbytes)
        except OSError:
            pass  # the file is longer than it needs to be, which harms nothing

    def describe(self, layout: Layout, dtype: DType, ndim: int, /) -> None:
        if self._foreign:
            return  # `NpyFileBackend.save` does it, when the shape has changed
        header = write_header(layout, dtype, ndim=ndim, nbytes=self._offset)
        write_fully(self._fd, [memoryview(header)], 0, path=self.path)

    def trim(self, nbytes: int, /) -> None:
        if any(True for _ in self._maps):
            return  # a load from a mapped page that was cut off would kill the process
        exact = nbytes if self._foreign else -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES
        if exact < self.capacity and not self._followed:
            try:
                _osops.ftruncate(self._fd, self._offset + exact)
            except OSError as error:
                raise StorageError(
                    error.errno, f"cannot cut: {error.strerror}", self.path
                ) from error
            self.capacity = exact

    def view(self, nbytes: int, /) -> NDArray[np.uint8]:
        if nbytes == 0:
            return np.frombuffer(b"", np.uint8)
        mapping = mmap.mmap(self._fd, self._offset + nbytes, access=mmap.ACCESS_READ)
        self._maps.add(mapping)
        return np.frombuffer(mapping, np.uint8)[self._offset :]

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            try:
                if self._direct_fd is not None:
                    _osops.close(self._direct_fd)
            finally:
                _osops.close(self._fd)
        except OSError as error:
            raise StorageError(error.errno, f"cannot close: {error.strerror}", self.path) from error


def _open_direct(path: str) -> int | None:
    """Open for direct I/O, or return None where the file system has none."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return _osops.open_file(path, write=True, direct=True)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise


class MemmapBackend:
    """One group in a directory."""

    can_create = True
    has_journal = True

    def __init__(self, directory: str, *, writable: bool, direct: bool = True) -> None:
        self.directory = directory
        self._writable = writable
        self._direct = direct
        self._metadata_path = os.path.join(directory, METADATA_NAME)
        self._lock = LockFile(self._path(LOCK_NAME), directory)

    # -- metadata -------------------------------------------------------------------------------

    def load(self) -> Checkpoint | None:
        try:
            with open(self._metadata_path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            self._refuse_foreign_directory()
            return None
        except NotADirectoryError as error:
            raise ForeignDataError(f"{self.directory} is not a directory") from error
        except OSError as error:
            raise StorageError(error.errno, error.strerror, self._metadata_path) from error
        return Checkpoint.from_bytes(data, self._metadata_path)

    def _refuse_foreign_directory(self) -> None:
        """A directory without metadata may only hold what a crash during creation leaves."""
        try:
            entries = set(os.listdir(self.directory))
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise ForeignDataError(
                f"{self.directory} is a file, and not a .npy file; a group is a directory"
            ) from error
        ours = {LOCK_NAME, DATA_NAME, METADATA_NAME + ".new"}
        if entries - ours or (DATA_NAME in entries and os.listdir(self._path(DATA_NAME))):
            raise ForeignDataError(
                f"{self.directory} holds {', '.join(sorted(entries)[:4])} but no {METADATA_NAME}: "
                "it is no group, and nothing was changed; choose another directory"
            )

    def save(self, checkpoint: Checkpoint, /) -> None:
        replace_durably(self._metadata_path, checkpoint.to_bytes())

    def admit(self, array: ArrayMetadata, /) -> None:
        pass

    def stamp(self) -> object:
        # Every save is a new file: its number may come again, but not with the same time.
        try:
            found = os.stat(self._metadata_path)
        except OSError as error:
            raise StorageError(error.errno, error.strerror, self._metadata_path) from error
        return found.st_ino, found.st_mtime_ns, found.st_size

    def open_journal(self, *, create: bool) -> FileRegion | None:
        path = self._path(JOURNAL_NAME)
        exists = os.path.exists(path)
        if not exists and not create:
            return None
        if create:
            try:
                if not exists:
                    _osops.close(_osops.open_file(path, write=True, create=True))
                # Also if it was there: whoever made it may have died before this.
                _osops.fsync_directory(self.directory)
            except OSError as error:
                raise StorageError(error.errno, f"cannot create: {error.strerror}", path) from error
        return FileRegion(path, 0, writable=self._writable, aligned=self._direct)

    # -- the lock -------------------------------------------------------------------------------

    def lock(self) -> None:
        self._make_directories()
        self._lock.acquire()

    def _make_directories(self) -> None:
        """Make the group's directories, durably, with whatever parents are missing.

        Also those that are there already, as long as there are no metadata: a process may have
        died between making one and making it durable.
        """
        made = []
        path = os.path.abspath(self.directory)
        data = os.path.join(path, DATA_NAME)
        while not os.path.isdir(path):
            made.append(path)
            path = os.path.dirname(path)
        if not os.path.isdir(data):
            made.insert(0, data)
        unsure = []
        if not os.path.exists(self._metadata_path):
            unsure = [os.path.dirname(data), os.path.dirname(os.path.dirname(data))]
        try:
            for path in reversed(made):
                try:
                    _osops.mkdir(path)
                except FileExistsError:
                    continue  # another process was faster
            for path in dict.fromkeys([*map(os.path.dirname, made), *unsure]):
                _osops.fsync_directory(path)
        except OSError as error:
            raise StorageError(
                error.errno, f"cannot make a directory: {error.strerror}", path
            ) from error

    # -- regions --------------------------------------------------------------------------------

    def create(self, file_id: int, nbytes: int, /, *, aligned: bool) -> FileRegion:
        path = self.data_path(file_id)
        try:
            if os.path.lexists(path):
                _osops.unlink(path)  # left by a crash: no metadata named it
            fd = _osops.open_file(path, write=True, create=True)
            try:
                _osops.fallocate(fd, 0, BLOCK_BYTES)
            finally:
                _osops.close(fd)
            region = FileRegion(path, BLOCK_BYTES, writable=True, aligned=aligned and self._direct)
            try:
                region.reserve(nbytes)
                _osops.fsync_directory(self._path(DATA_NAME))
            except BaseException:
                region.close()
                raise
        except StorageError:
            self._remove_quietly(path)
            raise
        except OSError as error:
            self._remove_quietly(path)
            raise StorageError(error.errno, f"cannot create: {error.strerror}", path) from error
        return region

    def open(self, file_id: int, nbytes: int, /, *, aligned: bool) -> FileRegion:
        path = self.data_path(file_id)
        if not os.path.exists(path):
            raise DamagedError(f"{path} is missing, though {METADATA_NAME} names it")
        region = FileRegion(
            path, BLOCK_BYTES, writable=self._writable, aligned=aligned and self._direct
        )
        if region.capacity < nbytes:
            region.close()
            raise DamagedError(
                f"{path} is truncated: it holds {region.capacity} bytes of data, "
                f"{METADATA_NAME} expects {nbytes}"
            )
        return region

    def settle(self) -> None:
        pass

    def committed(self) -> None:
        pass

    def remove(self, file_id: int, /) -> None:
        self._remove_quietly(self.data_path(file_id))

    def remove_orphans(self, keep: Collection[int], /) -> None:
        for path in self.orphans(keep):
            self._remove_quietly(path)

    def orphans(self, keep: Collection[int]) -> list[str]:
        """Return the paths of data files that are not in `keep`."""
        names = {f"{file_id:06d}.npy" for file_id in keep}
        return [
            os.path.join(self._path(DATA_NAME), entry)
            for entry in sorted(os.listdir(self._path(DATA_NAME)))
            if entry not in names and entry.removesuffix(".npy").isdigit()
        ]

    def _remove_quietly(self, path: str) -> None:
        try:
            _osops.unlink(path)
        except OSError:
            pass  # the space is lost until somebody deletes the file; nothing refers to it

    def publish(self, names: Mapping[str, int], /) -> None:
        """Link ``name.npy`` to the data files; links are no authority and need no barrier."""
        wanted = {f"{name}.npy": f"{DATA_NAME}/{i:06d}.npy" for name, i in names.items()}
        try:
            for entry in os.listdir(self.directory):
                path = self._path(entry)
                if entry.endswith(".npy") and os.path.islink(path):
                    if wanted.get(entry) == os.readlink(path):
                        del wanted[entry]
                    elif os.readlink(path).startswith(DATA_NAME + "/"):
                        _osops.unlink(path)
            for entry, target in wanted.items():
                if not os.path.lexists(self._path(entry)):
                    _osops.symlink(target, self._path(entry))
        except OSError as error:
            raise StorageError(
                error.errno, f"cannot link: {error.strerror}", self.directory
            ) from error

    def close(self) -> None:
        self._lock.release()

    def abandon(self) -> None:
        self._lock.abandon()

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def data_path(self, file_id: int) -> str:
        """Return the path of a data file."""
        return os.path.join(self.directory, DATA_NAME, f"{file_id:06d}.npy")


def open_backend(url: URL, *, writable: bool) -> MemmapBackend | npyfile.NpyFileBackend:
    """Open ``memmap:/dir``, or the one file ``memmap:/dir/x.npy``.

    ``?direct=no`` writes through the page cache also where direct I/O would work.
    """
    direct = url.options.get("direct", "yes")
    if direct not in ("yes", "no") or set(url.options) - {"direct"}:
        raise URLError(f"memmap: takes ?direct=yes or ?direct=no, got {url.options}")
    if not url.path:
        raise URLError("memmap: needs a directory, as in 'memmap:./run'")
    # Whole, since files are opened later too, when the process may have moved elsewhere.
    path = os.path.join(os.getcwd(), os.path.expanduser(url.path))
    if path.endswith(".npy") and not os.path.isdir(path):
        return npyfile.NpyFileBackend(path, writable=writable)
    return MemmapBackend(path, writable=writable, direct=direct == "yes")
