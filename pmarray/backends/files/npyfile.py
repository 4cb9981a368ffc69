"""One ``.npy`` file that some other program wrote, opened in place as a group of one array.

It has no metadata beside its own header, so there are no attributes and no further arrays. The
array grows and shrinks along its slow axis as long as the header has room for the new shape, and
nothing else follows in the file. Otherwise the header is left as it is.

Where it shrinks while somebody has the file mapped, the file keeps its length, and its tail passes
for something that follows from then on.
"""

from __future__ import annotations

import errno
import os

from pmarray._formats.metadata import ArrayMetadata, Checkpoint, GroupMetadata
from pmarray._formats.npy import MAX_HEADER_BYTES, Header, parse_header, write_header
from pmarray._geometry.layout import Layout
from pmarray._system import osops
from pmarray._system.beneath import exists
from pmarray._system.files import barrier, occupied_nbytes, read_file, write_fully
from pmarray._url import DEFAULT_NAME
from pmarray.backends.files.region import MAPPED_BYTE, FileRegion
from pmarray.errors import (
    DamagedError,
    ForeignDataError,
    GroupLockedError,
    GroupNotFoundError,
    LayoutError,
    LockLostError,
    StorageError,
)

__all__ = ["NpyFileBackend"]


_MAX_UNBACKED_ITEM_BYTES = 1 << 20


class NpyFileBackend:
    """The one array of a foreign ``.npy`` file."""

    can_create = False
    has_journal = False

    def __init__(self, path: str, *, writable: bool) -> None:
        self._path = path
        self._writable = writable
        self._header: Header | None = None
        self._lock_fd: int | None = None

    def load(self) -> Checkpoint | None:
        try:
            data = read_file(self._path, MAX_HEADER_BYTES)
        except FileNotFoundError as error:
            raise GroupNotFoundError(
                f"{self._path} does not exist; only an existing .npy file opens in place, "
                "a new array goes into a directory"
            ) from error
        except OSError as error:
            text = f"cannot open: {error.strerror}"
            raise StorageError(error.errno, text, self._path) from error
        directory = os.path.dirname(os.path.realpath(self._path))
        group = os.path.dirname(directory)
        if os.path.basename(directory) == "data" and exists(os.path.join(group, "pmarray.json")):
            raise ForeignDataError(
                f"{self._path} belongs to the group {group}: open that, so that its lock and its "
                "metadata are respected"
            )
        header = self._header = parse_header(data, self._path)
        if header.dtype.itemsize > max(os.stat(self._path).st_size, _MAX_UNBACKED_ITEM_BYTES):
            raise DamagedError(f"{self._path} is shorter than one item of its {header.dtype}")
        layout = _plain_layout(header)
        array = ArrayMetadata(
            0,
            header.shape,
            header.dtype,
            header.order,
            layout.line_stride,
            bytes(header.dtype.itemsize),
        )
        return Checkpoint(GroupMetadata(uuid="", arrays={DEFAULT_NAME: array}))

    def save(self, checkpoint: Checkpoint, /) -> None:
        """Rewrite the header where the shape has changed."""
        header = self._header
        array = checkpoint.metadata.arrays[DEFAULT_NAME]
        if header is None or array.shape == header.shape:
            return
        data = self._new_header(array)
        fd = osops.open_file(self._path, write=True)
        try:
            write_fully(fd, [memoryview(data)], 0, path=self._path)
            barrier(fd, path=self._path)
        finally:
            osops.close(fd)
        self._header = Header(array.shape, array.dtype, array.order, header.data_offset)

    def _new_header(self, array: ArrayMetadata) -> bytes:
        assert self._header is not None
        nbytes = self._header.data_offset
        try:
            return write_header(array.layout, array.dtype, ndim=len(array.shape), nbytes=nbytes)
        except ValueError as error:
            raise LayoutError(
                f"{self._path} cannot take shape {array.shape}: {error}; copy it into a directory"
            ) from error

    def admit(self, array: ArrayMetadata, /) -> None:
        self._new_header(array)

    def stamp(self) -> object:
        return None

    def open_journal(self, *, create: bool) -> None:
        return None

    def lock(self) -> None:
        fd = osops.open_file(self._path, write=True)
        try:
            osops.lock(fd, exclusive=True, nbytes=MAPPED_BYTE)  # not that of who maps it
        except (BlockingIOError, PermissionError) as error:
            osops.close(fd)
            raise GroupLockedError(
                f"{self._path} is being written to; open it read-only"
            ) from error
        self._lock_fd = fd

    def create(self, file_id: int, nbytes: int, /, *, aligned: bool) -> FileRegion:
        raise ForeignDataError(f"{self._path} is one array; use a directory to hold several")

    def open(self, file_id: int, nbytes: int, /, *, aligned: bool) -> FileRegion:
        assert self._header is not None
        region = FileRegion(
            self._path,
            self._header.data_offset,
            writable=self._writable,
            aligned=False,
            foreign_nbytes=nbytes,
        )
        if region.capacity < nbytes:
            region.close()
            raise DamagedError(
                f"{self._path} is truncated: it holds {region.capacity} bytes of data, "
                f"its header says {nbytes}"
            )
        return region

    def occupied_nbytes(self, name: str, array: ArrayMetadata, /) -> int:
        return min(array.layout.nbytes, occupied_nbytes(self._path))

    def remove(self, file_id: int, /) -> None:
        raise ForeignDataError(f"{self._path} is one array and cannot be deleted from itself")

    def close(self) -> None:
        if self._lock_fd is not None:
            fd, self._lock_fd = self._lock_fd, None
            try:
                osops.unlock(fd)
            finally:
                osops.close(fd)

    def refuse_lost_lock(self) -> None:
        if self._lock_fd is None:
            return
        mine = os.fstat(self._lock_fd)
        try:
            there: os.stat_result | None = os.stat(self._path)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise LockLostError(
                errno.ESTALE,
                "the file was removed or replaced by another one while this writer had it: "
                "nothing more is written; close the array, and open it again",
                self._path,
            )

    def abandon(self) -> None:
        if self._lock_fd is not None:
            fd, self._lock_fd = self._lock_fd, None
            os.close(fd)


def _plain_layout(header: Header) -> Layout:
    shape = header.shape or (1,)
    layout = Layout(shape, header.dtype.itemsize, header.order, 0)
    return Layout(shape, header.dtype.itemsize, header.order, layout.line_nbytes)
