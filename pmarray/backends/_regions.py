"""Regions in memory, and in files without names in place of it."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pmarray._dtypes import DType
from pmarray._geometry.layout import Layout
from pmarray._sizes import format_bytes
from pmarray._system import osops
from pmarray.errors import BudgetError, StorageError

__all__ = ["DRAMRegion", "SpillRegion"]

_PAGE = mmap.PAGESIZE
_HUGE_PAGE = 2 << 20
_SPILL_STEP_BYTES = 1 << 30


class DRAMRegion:
    """A growing anonymous mapping, with huge pages where the system has them."""

    def __init__(self, nbytes: int) -> None:
        self._map: mmap.mmap | None = None
        self._memory: NDArray[np.uint8] | None = None
        self.capacity = 0
        self.block_bytes = 1
        self.reserve(nbytes)

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The bytes themselves."""
        if self._memory is None:
            self._memory = np.frombuffer(self._map or bytearray(), np.uint8)
        return self._memory

    def read_into(self, offset: int, out: memoryview, /) -> None:
        np.frombuffer(out, np.uint8)[:] = self.memory[offset : offset + out.nbytes]

    def will_read(self, offset: int, nbytes: int, /) -> None:
        pass

    def write(self, offset: int, buffers: Sequence[memoryview], /) -> None:
        for buffer in buffers:
            self.memory[offset : offset + buffer.nbytes] = np.frombuffer(buffer, np.uint8)
            offset += buffer.nbytes

    def barrier(self) -> None:
        pass

    def reserve(self, nbytes: int, /) -> None:
        if nbytes <= self.capacity:
            return
        # Geometric growth, so that n appends copy O(n); untouched pages cost nothing.
        capacity = max(nbytes, self.capacity + self.capacity // 2)
        capacity = -(-capacity // _PAGE) * _PAGE
        self._memory = None
        try:
            if self._map is None:
                self._map = self._allocate(capacity)
            else:
                self._grow(self._map, capacity)
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            raise BudgetError(f"cannot allocate {format_bytes(capacity)} of memory") from error
        self.capacity = capacity

    def _grow(self, old: mmap.mmap, capacity: int) -> None:
        try:
            old.resize(capacity)  # moves page tables, not bytes
            return
        except BufferError:
            pass  # somebody holds a view: it keeps the old memory, we move on to new
        new = self._allocate(capacity)
        np.frombuffer(new, np.uint8)[: len(old)] = np.frombuffer(old, np.uint8)
        self._map = new

    @staticmethod
    def _allocate(capacity: int) -> mmap.mmap:
        result = mmap.mmap(-1, capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if capacity >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                result.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                pass  # a kernel without transparent huge pages: slower, not wrong
        return result

    def refresh(self) -> None:
        pass

    def describe(self, layout: Layout, dtype: DType, ndim: int, /) -> None:
        pass

    def trim(self, nbytes: int, /) -> None:
        pass

    def view(self, nbytes: int, /) -> NDArray[np.uint8]:
        result = self.memory[:nbytes]
        result.flags.writeable = False
        return result

    def close(self) -> None:
        self._memory = None

    def release(self) -> None:
        """Give the memory back, but for what somebody has a view of."""
        self._memory = self._map = None
        self.capacity = 0


class SpillRegion(DRAMRegion):
    """A mapping of a file without a name, which is gone with its last user, however that ends.

    Parameters
    ----------
    nbytes
        To begin with.
    directory
        Where the file takes its space.
    """

    def __init__(self, nbytes: int, directory: str) -> None:
        self._directory = directory
        try:
            self._fd = osops.open_nameless(directory)
        except OSError as error:
            raise StorageError(
                error.errno, f"cannot make a file to spill to: {error.strerror}", directory
            ) from error
        self._close_file = weakref.finalize(self, os.close, self._fd)
        super().__init__(nbytes)

    def reserve(self, nbytes: int, /) -> None:
        if nbytes <= self.capacity:
            return
        generous = max(nbytes, self.capacity + min(self.capacity // 2, _SPILL_STEP_BYTES))
        try:
            self._map_file(generous)
        except (OSError, ValueError, OverflowError):
            try:
                self._map_file(nbytes)
            except (OSError, ValueError, OverflowError) as error:
                code = error.errno if isinstance(error, OSError) else None
                raise StorageError(
                    code,
                    f"cannot reserve {format_bytes(nbytes - self.capacity)} more to spill to "
                    f"({error}); nothing was changed: free space and try again",
                    self._directory,
                ) from error

    def _map_file(self, nbytes: int) -> None:
        capacity = -(-nbytes // _PAGE) * _PAGE
        try:
            # Allocated, so that a full disk is an error here and not a bus error at some store.
            osops.fallocate(self._fd, 0, capacity)
            self._map = mmap.mmap(self._fd, capacity)  # old arrays show the same pages
        except BaseException:
            osops.ftruncate(self._fd, self.capacity)  # what was allocated before it was full
            raise
        self._memory = None
        self.capacity = capacity

    def release(self) -> None:
        super().release()
        self._close_file()
