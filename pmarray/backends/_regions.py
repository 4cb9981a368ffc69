"""Regions in memory, and in files without names in place of it."""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pmarray._available import (
    address_space_is_counted,
    available_memory_bytes,
    memory_bytes,
    reservable_bytes,
)
from pmarray._dtypes import DType
from pmarray._geometry.layout import Layout
from pmarray._sizes import format_bytes
from pmarray._system import osops
from pmarray._system.descriptor import Descriptor
from pmarray._system.touching import BEHIND, touch
from pmarray.errors import BudgetError, StorageError
from pmarray.locks import Lock

__all__ = ["DRAMRegion", "SpillRegion"]

_PAGE = mmap.PAGESIZE
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
_PIECE_BYTES = 2 << 20
_SPILL_STEP_BYTES = 1 << 30
_TOUCH_FROM_BYTES = 1 << 20
"""Less is touched sooner than a thread is told."""
_TOUCH_MOST_BYTES = 256 << 20
"""So much may be there that nobody has asked for."""

_KEPT_BYTES = 256 << 20
_KEPT_STEPS = 8
"""What growing leaves to everybody else: so much, and so many steps more, for a program that
appends vectors works with others of that length. Who has no memory left is killed, and told
nothing."""
_LOOK_SHARE = 16
"""How much is available is asked again after such a part of it."""
_SETTLE_FROM_BYTES = 64 << 20
_SETTLED_MOST_BYTES = 32 << 40
"""Of all regions together, in a quarter of the address space."""

_REGIONS: weakref.WeakSet[DRAMRegion] = weakref.WeakSet()


class DRAMRegion:
    """A growing anonymous mapping.

    When it grows by a step, as much again is touched behind: the next one finds pages that are
    there, and its writer copies as fast as into memory that was used before.

    It begins with as much as anybody asks for, as `numpy.zeros` does, of which only what is written
    takes memory. It grows as long as there is memory for all of that.

    When a large one grows, it takes as many addresses as the machine has memory, and stays where it
    is from then on. A mapping that somebody has a view of cannot be moved but by a copy: for that
    time, and as long as the view is there, it takes twice the memory.
    """

    def __init__(self, nbytes: int) -> None:
        self._end = self._most = 0
        """How much of it is used, and the most that ever was."""
        self._touched = self._to_touch = 0
        """Up to where memory was touched behind, and up to where it is to be."""
        self._unasked = 0
        """How much it may grow before the system is asked again."""
        self._moving = Lock()
        """Held while the mapping moves, or has to stay where it is."""
        self._map: mmap.mmap | None = None
        self._memory: NDArray[np.uint8] | None = None
        self.capacity = 0
        self.block_bytes = 1
        self.reserve(nbytes)
        _REGIONS.add(self)

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
        if 0 < self._end < nbytes and nbytes > self._most:
            self._refuse_to_fill(nbytes - max(self._end, self._most))
        step = min(nbytes - self._end, _TOUCH_MOST_BYTES)
        ahead = step if self._end >= step >= _TOUCH_FROM_BYTES else 0  # not for the first
        if nbytes + ahead > self.capacity:
            try:
                with self._moving:
                    self._enlarge(nbytes + ahead)
            except BudgetError:
                if nbytes > self.capacity:
                    raise
                ahead = 0
        self._end, self._most = nbytes, max(self._most, nbytes)
        if ahead:
            self._to_touch = nbytes + ahead
            BEHIND.submit(_touch_behind, weakref.ref(self))

    def _refuse_to_fill(self, nbytes: int) -> None:
        """Raise if so much more would leave no memory to others."""
        if nbytes <= self._unasked:
            self._unasked -= nbytes
            return
        available = available_memory_bytes()
        # A single large step says nothing of what comes next.
        kept = _KEPT_BYTES + min(_KEPT_STEPS * nbytes, self._end // 2)
        if nbytes > available - kept:
            raise BudgetError(
                f"an array in memory cannot grow by {format_bytes(nbytes)}: "
                f"{format_bytes(available)} are available, and {format_bytes(kept)} of them are "
                "left to others: keep it in a file (memmap:DIRECTORY)"
            )
        self._unasked = (available - kept - nbytes) // _LOOK_SHARE

    def touch_some(self) -> bool:
        """Touch a piece of what is to be used next; False where that is all."""
        with self._moving:
            start = -(-max(self._touched, self._end) // _PAGE) * _PAGE
            stop = min(self._to_touch, start + _PIECE_BYTES, self.capacity) // _PAGE * _PAGE
            if start >= stop or self._map is None:
                return False
            self._touched = stop
            return touch(self.memory.ctypes.data + start, stop - start)

    def _enlarge(self, nbytes: int) -> None:
        # Geometric growth, so that n appends copy O(n); untouched pages cost nothing, but where
        # the system counts them all the same.
        for capacity in (
            self._settled_bytes(nbytes),
            max(nbytes, self.capacity + self.capacity // 2),
            nbytes,
        ):
            if capacity < nbytes:
                continue
            capacity = -(-capacity // _PAGE) * _PAGE
            self._memory = None
            try:
                # As the system says of what it counts; which takes longer than a small one.
                if capacity >= _SETTLE_FROM_BYTES and capacity > reservable_bytes():
                    raise MemoryError
                if self._map is None:
                    self._map = self._allocate(capacity)
                else:
                    self._grow(self._map, capacity)
            except (OSError, ValueError, OverflowError, MemoryError) as error:
                failure = error
            else:
                self.capacity = capacity
                return
        if isinstance(failure, BudgetError):
            raise failure
        raise BudgetError(f"cannot allocate {format_bytes(capacity)} of memory") from failure

    def _settled_bytes(self, nbytes: int) -> int:
        """Addresses for all that it may ever be; 0 if it is small, or addresses are short."""
        if not self._end or nbytes < _SETTLE_FROM_BYTES or address_space_is_counted():
            return 0
        taken = sum(region.capacity for region in list(_REGIONS))
        return memory_bytes() if taken + memory_bytes() <= _SETTLED_MOST_BYTES else 0

    def _grow(self, old: mmap.mmap, capacity: int) -> None:
        try:
            old.resize(capacity)  # moves page tables, not bytes
            return
        except (BufferError, SystemError):
            pass  # somebody holds a view, which keeps the old memory; or there is no mremap
        there, available = max(self._end, self._most), available_memory_bytes()
        if there > available - _KEPT_BYTES:
            raise BudgetError(
                "an array in memory of which somebody has a view can grow only by a copy of "
                f"{format_bytes(there)}, and {format_bytes(available)} are available: let the "
                "view go, or keep the array in a file (memmap:DIRECTORY)"
            )
        new = self._allocate(capacity)
        np.frombuffer(new, np.uint8)[:there] = np.frombuffer(old, np.uint8, there)
        self._map = new
        self._touched = 0  # that was of the old one

    @staticmethod
    def _allocate(capacity: int) -> mmap.mmap:
        # Huge pages are the system's choice. To ask for them saves faults, which touching in pieces
        # saves as well, and takes memory that nobody used for long: a virtual machine has to get
        # that from its host, and appends wait for it.
        # Not counted, or a process with several of these could not fork.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        return mmap.mmap(-1, capacity, flags=flags)

    def refresh(self) -> None:
        pass

    def describe(self, layout: Layout, dtype: DType, ndim: int, /) -> None:
        pass

    def trim(self, nbytes: int, /) -> None:
        with self._moving:
            start = -(-self._most // _PAGE) * _PAGE  # below, somebody may have a view of it
            if self._map is not None and start < self._touched:
                # To the end: the last huge page reaches beyond what was touched.
                self._map.madvise(mmap.MADV_DONTNEED, start, self.capacity - start)
            self._touched = self._to_touch = 0

    def view(self, nbytes: int, /) -> NDArray[np.uint8]:
        result = self.memory[:nbytes]
        result.flags.writeable = False
        return result

    def close(self) -> None:
        self._memory = None

    def release(self) -> None:
        """Give the memory back, but for what somebody has a view of."""
        with self._moving:
            self._memory = self._map = None
            self.capacity = 0


def _touch_behind(reference: weakref.ref[DRAMRegion]) -> None:
    while (region := reference()) is not None and region.touch_some():
        del region  # it may go in between


def _begin_in_child() -> None:
    for region in list(_REGIONS):
        region._moving = Lock()  # the thread that touches may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


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
            self._descriptor = Descriptor(osops.open_nameless(directory))
        except OSError as error:
            raise StorageError(
                error.errno, f"cannot make a file to spill to: {error.strerror}", directory
            ) from error
        self._fd = self._descriptor.fileno()
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
        self._descriptor.close()
