"""Page-aligned DRAM buffers under one byte budget."""

from __future__ import annotations

import mmap
from collections import defaultdict
from contextlib import suppress

__all__ = ["HUGE_BYTES", "BufferPool", "expect_long"]

HUGE_BYTES = 2 << 20
"""A huge page."""
_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux


class BufferPool:
    """Lends page-aligned buffers, never more than `budget_bytes` of them in all.

    Returned buffers are kept, and counted, for the next taker of as many pages; they are given
    back to the system only when another size needs their room. Not thread-safe: the cache calls
    it under its lock.

    >>> pool = BufferPool(budget_bytes=8192)
    >>> first, second, third = pool.take(4096), pool.take(4096), pool.take(4096)
    >>> third is None
    True
    >>> pool.give(first)
    >>> pool.take(4000).obj is first.obj
    True
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.allocated_bytes = 0
        self._free: defaultdict[int, list[mmap.mmap]] = defaultdict(list)

    def take(self, nbytes: int) -> memoryview | None:
        """Return a writable buffer of `nbytes` bytes, or None where the budget has no room."""
        size = _whole_pages(nbytes)
        free = self._free[size]
        if free:
            return memoryview(free.pop())[:nbytes]
        if self.allocated_bytes + size > self.budget_bytes:
            self._release_free()
        if self.allocated_bytes + size > self.budget_bytes:
            return None
        buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.allocated_bytes += size
        return memoryview(buffer)[:nbytes]

    def has_free(self, nbytes: int) -> bool:
        """Whether there is a buffer of this size that is kept."""
        return bool(self._free[_whole_pages(nbytes)])

    def has_room(self, nbytes: int) -> bool:
        """Whether there is room for another buffer of this size, beside those that are lent."""
        free = sum(size * len(buffers) for size, buffers in self._free.items())
        return self.allocated_bytes - free + _whole_pages(nbytes) <= self.budget_bytes

    def give(self, buffer: memoryview) -> None:
        """Take a buffer back; its contents are no longer anybody's."""
        memory = buffer.obj
        assert isinstance(memory, mmap.mmap)
        self._free[len(memory)].append(memory)

    def count_anew(self, lent: list[memoryview]) -> None:
        """Take it that `lent` is all that is lent: one that was taken may have got lost."""
        free = sum(size * len(buffers) for size, buffers in self._free.items())
        self.allocated_bytes = free + sum(_whole_pages(buffer.nbytes) for buffer in lent)

    def _release_free(self) -> None:
        for size, buffers in self._free.items():
            self.allocated_bytes -= size * len(buffers)
            buffers.clear()


def expect_long(buffer: memoryview, nbytes: int) -> None:
    """Ask for huge pages, if so many bytes in a row of a buffer, about to be written, are worth it.

    A direct write looks up every page, and hands the device one request for each few hundred that
    do not adjoin: of 11 MB, eleven instead of three. Who touches a few pages of fresh memory would
    wait for the kernel to clear all of a huge one.
    """
    memory = buffer.obj
    if (
        nbytes >= HUGE_BYTES // 2
        and buffer.nbytes >= HUGE_BYTES
        and _MADV_HUGEPAGE is not None
        and isinstance(memory, mmap.mmap)
    ):
        with suppress(OSError):  # a kernel without them
            memory.madvise(_MADV_HUGEPAGE)


def _whole_pages(nbytes: int) -> int:
    """What a buffer costs: a mapping has no smaller unit than the page."""
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
