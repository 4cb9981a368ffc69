"""A file on a DAX file system, mapped: loads and stores go to the medium itself."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pmarray._dtypes import DType
from pmarray._formats.npy import write_header
from pmarray._geometry.layout import BLOCK_BYTES, Layout
from pmarray._geometry.spans import SpanSet
from pmarray._system import osops
from pmarray.backends.files.kept import KeptMapping
from pmarray.backends.files.region import FileRegion
from pmarray.backends.shelf.stores import NOTHING, Stores
from pmarray.errors import StorageError
from pmarray.locks import Lock

__all__ = ["DAXRegion"]

_ZEROS = memoryview(bytes(1 << 20))


class DAXRegion(FileRegion):
    """The items of one array in a file on DAX, `data_offset` bytes from its start.

    The file is mapped with MAP_SYNC: when a store has been written back, the file system's own
    record of where the byte belongs is durable too. The file's length is not, so that the first
    barrier after a change of it is a system call.

    The first store to a page that was reserved and never written makes the file system commit its
    books, page by page. So bytes that are known to be fresh are written by system calls, many
    pages at a time: by the data, or by zeros where stores are to follow.

    Parameters
    ----------
    path
        The file, which exists.
    data_offset
        Where the items begin.
    writable
        Whether it may be written.
    """

    def __init__(self, path: str, data_offset: int, *, writable: bool) -> None:
        super().__init__(path, data_offset, writable=writable, aligned=False)
        self._writable = writable
        self._stores = Stores(path)
        self._file = NOTHING
        # Whoever made the file may have died before its length was durable.
        self._unsynced = True
        self._fresh = SpanSet()
        """What this handle has reserved and nobody has written, in whole blocks."""
        self._lock = Lock()  # the writer thread takes from it, the caller adds to it

    @property
    def memory(self) -> NDArray[np.uint8]:  # type: ignore[override]  # a file has none, this has
        """The bytes themselves."""
        self._map()
        return self._stores.memory

    def _map(self) -> None:
        """Map the file as long as it is now; arrays made from an older mapping keep that."""
        if self.capacity == len(self._stores.memory):
            return
        nbytes = self._offset + self.capacity
        try:
            mapping = osops.map_shared(self._fd, [(0, nbytes)], write=self._writable, sync=True)
        except OSError as error:
            raise StorageError(error.errno, f"cannot map: {error.strerror}", self.path) from error
        self.announce()  # `view` asks whether it can
        self._file = mapping.memory
        self._stores.memory = self._file[self._offset :]

    def stored(self, offset: int, nbytes: int, /) -> None:
        self._stores.add(offset, nbytes)

    # Reads are system calls, as those of any file: where another process may cut the file, a load
    # from its mapping could kill this one.

    def write(self, offset: int, buffers: Sequence[memoryview], /) -> None:
        self._map()
        for buffer in buffers:
            if self._take_fresh(offset, offset + buffer.nbytes):
                super().write(offset, [buffer])
                self._unsynced = True
            else:
                self._stores.write(offset, [buffer])
            offset += buffer.nbytes

    def will_store(self, offset: int, nbytes: int, /) -> None:
        for start, stop in self._take_fresh(offset, offset + nbytes):
            for at in range(start, stop, len(_ZEROS)):
                super().write(at, [_ZEROS[: stop - at]])
            self._unsynced = True

    def _take_fresh(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the fresh bytes of all blocks of ``[start, stop)``, which are fresh no more."""
        low, high = start // BLOCK_BYTES * BLOCK_BYTES, -(-stop // BLOCK_BYTES) * BLOCK_BYTES
        with self._lock:
            if not self._fresh.intersects(low, high):
                return []
            rest = SpanSet()
            rest.add(low, high)
            for gap in self._fresh.gaps(low, high):
                rest.remove(*gap)
            self._fresh.remove(low, high)
        return list(rest)

    def barrier(self) -> None:
        self._map()  # what was noted is found by its place in the memory
        self._stores.persist()
        if self._unsynced:
            self._unsynced = False  # before, not after: another thread may write meanwhile
            super().barrier()

    def reserve(self, nbytes: int, /) -> None:
        before = self.capacity
        super().reserve(nbytes)
        if self.capacity > before:
            with self._lock:
                self._fresh.add(-(-before // BLOCK_BYTES) * BLOCK_BYTES, self.capacity)
            self._unsynced = True

    def will_grow(self, nbytes: int, more: int, /) -> None:
        pass  # it would have to be mapped anew, and waits for no disk

    def describe(self, layout: Layout, dtype: DType, ndim: int, /) -> None:
        header = write_header(layout, dtype, ndim=ndim, nbytes=self._offset)
        if self.capacity:
            self._map()
            self._stores.write_to(self._file[: self._offset], memoryview(header))
        else:
            super().describe(layout, dtype, ndim)
            self._unsynced = True

    def trim(self, nbytes: int, /) -> None:
        if -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES >= self.capacity:
            return
        # A load from a mapped page that was cut off kills the process: not while others map it.
        mapping = weakref.ref(self._file.base) if self._file.base is not None else None
        self._file = self._stores.memory = NOTHING
        if mapping is None or mapping() is None:
            before = self.capacity
            super().trim(nbytes)
            self._unsynced |= self.capacity != before
            with self._lock:
                self._fresh.remove(self.capacity, before)

    def keep_mapped(self, nbytes: int, /) -> KeptMapping | None:
        # Who writes has the file mapped already, another way.
        return None if self._writable else super().keep_mapped(nbytes)

    def view(self, nbytes: int, /) -> NDArray[np.uint8] | None:
        if not self._writable:
            return super().view(nbytes)
        if not self.announce():
            return None
        result = self.memory[:nbytes]
        result.flags.writeable = False
        return result

    def close(self) -> None:
        self._file = self._stores.memory = NOTHING
        super().close()
